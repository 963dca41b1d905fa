"""Which positions a stack sees, against countings by hand and against a composition of masks written out here."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from planner import load, parse_spec
from planner.errors import UnsupportedPlan
from planner.reach import PROBE_LENGTH, dependent_pairs, narrowed_for_reach, reach_by_depth
from planner.spec import ArchitectureSpec

MLP = {"kind": "mlp", "intermediate_size": 16}


def model(*mixers: dict[str, Any], repeats: int = 1, channel: dict[str, Any] | None = MLP) -> ArchitectureSpec:
    layers = [{"sequence_mixer": mixer, "channel_mixer": channel} for mixer in mixers]
    return parse_spec({"vocab_size": 16, "hidden_size": 16, "layer_groups": [{"repeats": repeats, "layers": layers}]})


def attention(**fields: Any) -> dict[str, Any]:
    return {"kind": "attention", "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, **fields}


def farthest(spec: ArchitectureSpec, length: int, **options: Any) -> list[int]:
    return [reach.farthest for reach in reach_by_depth(spec, length, **options)]


def test_windows_add_up() -> None:
    # n (w - 1) + 1: a window of 5 reaches 4 further back a layer, until the sequence begins
    assert farthest(model(attention(sliding_window=5), repeats=4), 14) == [5, 9, 13, 14]
    # 32 layers of 4,096: 32 * 4095 + 1
    assert farthest(load("mistral-7b"), PROBE_LENGTH)[-1] == 131_041


def test_dilated_windows_see_only_their_own_residue() -> None:
    (once, twice) = reach_by_depth(model(attention(sliding_window=3, dilation=4), repeats=2), 20)
    assert np.flatnonzero(once.seen).tolist() == [11, 15, 19]
    assert np.flatnonzero(twice.seen).tolist() == [3, 7, 11, 15, 19]
    assert (twice.farthest, twice.count) == (17, 5)  # 2 * (3 - 1) * 4 + 1


def test_chunks_do_not_add_up() -> None:
    spec = model(attention(attention_chunk_size=6), repeats=3)
    assert farthest(spec, 15) == [3, 3, 3]  # position 14 is the third of its chunk
    assert farthest(spec, 15, position=11) == [6, 6, 6]


def test_layers_that_differ_compose_from_the_top() -> None:
    # From position 23, the upper layer's window of 3 sees 21, 22, 23; the lower's chunks of 5 begin at 20.
    spec = model(attention(attention_chunk_size=5), attention(sliding_window=3))
    assert farthest(spec, 24) == [4, 4]
    # With the window below the chunk: chunk from 20, then two more behind it.
    spec = model(attention(sliding_window=3), attention(attention_chunk_size=5))
    assert farthest(spec, 24) == [3, 6]


def test_convolutions_shifts_and_recurrences() -> None:
    convolution = {"kind": "short_convolution", "conv_kernel": 4}
    assert farthest(model(convolution, repeats=3), 64) == [4, 7, 10]
    state = {"kind": "mamba2", "num_heads": 4, "head_dim": 8, "state_size": 8, "chunk_size": 16}
    assert farthest(model(state), 64) == [64]
    shift = {"kind": "rwkv_channel_mix", "intermediate_size": 16}
    assert farthest(model(attention(sliding_window=1), repeats=2, channel=shift), 64) == [2, 3]


def test_shared_keys_are_those_of_the_layer_that_made_them() -> None:
    # The second layer reads keys made before the first one mixed anything: no further back than one window.
    spec = model(attention(sliding_window=5), attention(sliding_window=5, shares_key_values=True))
    assert farthest(spec, 32) == [5, 5]
    # Of its own keys it would read what the first had mixed.
    assert farthest(model(attention(sliding_window=5), repeats=2), 32) == [5, 9]
    # A convolution between changes nothing of the keys, and adds two positions behind the queries.
    middle = {"kind": "short_convolution", "conv_kernel": 3}
    spec = model(attention(sliding_window=5), middle, attention(sliding_window=5, shares_key_values=True))
    assert farthest(spec, 32) == [5, 7, 7]


def test_parallel_mixers_read_the_same_stream() -> None:
    layer = {
        "sequence_mixer": attention(sliding_window=3),
        "channel_mixer": {"kind": "rwkv_channel_mix", "intermediate_size": 16},
    }
    for residual, expected in (("sequential", 4), ("parallel", 3)):
        groups = [{"layers": [{**layer, "residual": residual}]}]
        spec = parse_spec({"vocab_size": 16, "hidden_size": 16, "layer_groups": groups})
        assert farthest(spec, 32) == [expected]


@pytest.mark.parametrize("name", ["gemma-2-2b", "recurrentgemma-2b", "llama-4-scout", "gpt-oss-20b", "bamba-9b"])
def test_sets_are_products_of_masks(name: str) -> None:
    """The same by matrices: each layer's (position, position) dependence, multiplied from the bottom up."""
    length = 48
    spec = narrowed_for_reach(load(name), 32, length, keep_windows=False).spec
    place = np.arange(length)
    distance = place[:, None] - place[None, :]
    product = np.eye(length, dtype=bool)
    for reach, (_, layer) in zip(reach_by_depth(spec, length), spec.iterate_layers(), strict=True):
        mask = np.eye(length, dtype=bool)
        mixer = layer.sequence_mixer
        if mixer is not None:
            seen = distance >= 0
            if getattr(mixer, "sliding_window", None):
                seen &= distance < mixer.sliding_window
            if getattr(mixer, "attention_chunk_size", None):
                seen &= place[:, None] // mixer.attention_chunk_size == place[None, :] // mixer.attention_chunk_size
            mask |= seen
        product = mask.astype(int) @ product.astype(int) > 0
        assert (reach.seen == product[-1]).all()


def test_pairs_of_a_mask() -> None:
    # 6 positions: a window of 3 leaves 1 + 2 + 3 + 3 + 3 + 3; chunks of 4 leave 1 + 2 + 3 + 4 and 1 + 2
    spec = model(attention(sliding_window=3), attention(attention_chunk_size=4), attention())
    windowed, chunked, full = (layer.sequence_mixer for _, layer in spec.iterate_layers())
    assert [dependent_pairs(mixer, 6) for mixer in (windowed, chunked, full)] == [15, 13, 21]  # type: ignore[arg-type]


def test_a_narrowed_design_keeps_its_layers_and_shows_its_windows() -> None:
    small = narrowed_for_reach(load("mistral-7b"), 32, 512, keep_windows=False).spec
    assert (small.num_layers, small.hidden_size) == (32, 32)
    (whole,) = reach_by_depth(small, 512, [32])
    assert 256 < whole.farthest <= 512
    kept = narrowed_for_reach(load("mistral-7b"), 32, 512, keep_windows=True).spec
    assert kept.layer_groups[0].layers[0].sequence_mixer.sliding_window == 4096  # type: ignore[union-attr]


@pytest.mark.parametrize("options, path", [({"position": 8}, "position"), ({"depths": [3]}, "depths")])
def test_what_is_not_there_is_refused(options: dict[str, Any], path: str) -> None:
    with pytest.raises(UnsupportedPlan) as caught:
        reach_by_depth(model(attention()), 8, **options)
    assert caught.value.path == path
