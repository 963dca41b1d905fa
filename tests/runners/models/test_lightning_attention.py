"""Lightning attention over chunks against its recurrence position by position, and its training memory as measured."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from planner import TrainingPlan, estimate_training, parse_spec, scale_down
from planner.components import lightning_attention
from runners.models import build, decayed_sum
from runners.models.lightning_attention import chunked_decay, decay_rates, decay_step
from runners.training.memory import measure_training_memory
from tests.planner.test_training import measured_peak_bytes

MIXER = {"kind": "lightning_attention", "num_attention_heads": 4, "head_dim": 16}


def model_of(mixer: dict[str, Any], **layer: Any) -> dict[str, Any]:
    both = {"sequence_mixer": mixer, "channel_mixer": {"kind": "mlp", "intermediate_size": 128}, **layer}
    return {
        "vocab_size": 64,
        "hidden_size": 64,
        "positions": {"kind": "none"},
        "layer_groups": [{"repeats": 3, "layers": [both]}],
    }


def drawn(length: int, heads: int = 3, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    made = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(2, length, heads, 5, generator=made, dtype=torch.float64) for _ in range(3))
    return q.requires_grad_(), k.requires_grad_(), v.requires_grad_()


def plain_decay(q: Tensor, k: Tensor, v: Tensor, rates: Tensor) -> Tensor:
    """Equation 5 of arXiv:2501.08313 with a decay: kv = lambda kv + k v^T, o = q kv."""
    state, outputs = torch.zeros(2, v.shape[2], 5, 5, dtype=v.dtype), []
    for t in range(v.shape[1]):
        state = (-rates).exp()[:, None, None] * state + torch.einsum("bhi,bhj->bhij", k[:, t], v[:, t])
        outputs.append(torch.einsum("bhi,bhij->bhj", q[:, t], state))
    return torch.stack(outputs, 1)


RATES = torch.tensor([0.0, 0.3, 4.0], dtype=torch.float64)


@pytest.mark.parametrize("length, chunk", [(1, 4), (8, 4), (11, 4), (5, 16), (9, 1)])
def test_the_chunks_and_their_gradients_are_the_loops(length: int, chunk: int) -> None:
    raw = drawn(length)
    plain = plain_decay(*raw, RATES)
    weights = torch.randn_like(plain)
    expected = torch.autograd.grad((plain * weights).sum(), raw)
    for fast in (chunked_decay(*raw, RATES, chunk)[0], decayed_sum.decayed_sum(*raw, RATES, chunk)):
        torch.testing.assert_close(fast, plain, rtol=1e-12, atol=1e-12)
        for one, other in zip(torch.autograd.grad((fast * weights).sum(), raw), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)


def test_it_goes_on_from_a_state_by_chunks_and_by_single_positions() -> None:
    q, k, v = drawn(14)
    parts, state = [], torch.zeros(2, 3, 5, 5, dtype=torch.float64)
    for start, end in ((0, 7), (7, 12), (12, 13), (13, 14)):
        pieces = (part[:, start:end] for part in (q, k, v))
        made, after = decay_step(*pieces, RATES, state) if end - start == 1 else chunked_decay(*pieces, RATES, 3, state)
        assert after is not None
        state = after
        parts.append(made)
    torch.testing.assert_close(torch.cat(parts, 1), plain_decay(q, k, v, RATES), rtol=1e-12, atol=1e-12)


def test_harsh_decays_stay_finite_in_single_precision() -> None:
    q, k, v = (part.detach().float() for part in drawn(64))
    y, state = chunked_decay(q, k, v, 30 * RATES.float(), 16, torch.zeros(2, 3, 5, 5))
    assert state is not None
    assert torch.isfinite(state).all()
    wide = plain_decay(*(part.double() for part in (q, k, v)), 30 * RATES)
    torch.testing.assert_close(y.double(), wide, rtol=1e-4, atol=1e-4)


def test_rates_fall_with_the_head_and_with_the_depth() -> None:
    """Of four heads by hand: 2**-2, 2**-4, 2**-6 and 2**-8; in the middle layer of three, half of that."""
    by_hand = torch.tensor([1 / 4, 1 / 16, 1 / 64, 1 / 256], dtype=torch.float64)
    torch.testing.assert_close(decay_rates(4, 1, 3, False), by_hand)
    torch.testing.assert_close(decay_rates(4, 1, 3, True), by_hand / 2, rtol=1e-4, atol=0.0)
    assert (decay_rates(4, 2, 3, True) < 1e-4).all()


def test_each_layer_of_a_model_knows_its_depth() -> None:
    model: Any = build(parse_spec(model_of(MIXER)))
    assert [layer.sequence_mixer.place for layer in model.layers] == [(0, 3), (1, 3), (2, 3)]


def test_the_stream_and_the_output_are_multiplied_where_they_are_added() -> None:
    spec = parse_spec(model_of(MIXER, norm_placement="after_residual", sequence_multipliers=(3.0, 0.5)))
    layer: Any = build(spec, dtype=torch.float64).get_submodule("layers.0")
    x = torch.randn(1, 5, 64, dtype=torch.float64)
    first = layer.sequence_norm(3.0 * x + 0.5 * layer.sequence_mixer(x))
    expected = layer.channel_norm(first + layer.channel_mixer(first))
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16_autocast"])
@pytest.mark.parametrize("chunk_size", [16, 64, 128])
def test_training_memory_is_the_measured_peak(precision: Any, chunk_size: int) -> None:
    spec = parse_spec(model_of({**MIXER, "chunk_size": chunk_size}))
    plan = TrainingPlan(precision=precision, micro_batch_size=2, sequence_length=128)
    memory = estimate_training(spec, plan).memory
    assert memory.total_bytes - memory.overhead_bytes == pytest.approx(measured_peak_bytes(spec, plan), rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16_autocast"])
@pytest.mark.parametrize(
    "fields, length",
    [
        ({"chunk_size": 256}, 128),  # less than a chunk
        ({"chunk_size": 256}, 256),  # one
        ({"chunk_size": 256}, 1024),  # a tile of several
        ({"chunk_size": 256, "num_attention_heads": 8}, 1024),  # several tiles
        ({"chunk_size": 64}, 200),  # padded
        ({"chunk_size": 16}, 256),  # the norm
        ({"chunk_size": 16, "head_dim": 64}, 512),  # states
        ({"chunk_size": 16, "head_dim": 128}, 32),  # the state that is carried
        ({"chunk_size": 64, "num_attention_heads": 16}, 512),
    ],
)
def test_the_peak_is_followed_through_each_moment(fields: dict[str, Any], length: int, precision: Any) -> None:
    layers = [{"repeats": 2, "layers": [{"sequence_mixer": {**MIXER, **fields}}]}]
    spec = parse_spec({"vocab_size": 64, "hidden_size": 64, "positions": {"kind": "none"}, "layer_groups": layers})
    plan = TrainingPlan(precision=precision, micro_batch_size=2, sequence_length=length, chunked_loss=True)
    predicted = estimate_training(spec, plan).memory.allocated_bytes
    measured = measure_training_memory(spec, 2, length, precision, chunked_loss=True).total_bytes
    assert predicted == pytest.approx(measured, rel=0.01)


def test_the_planner_knows_the_tile() -> None:
    assert lightning_attention.DECAY_TILE == decayed_sum.TILE_ELEMENTS


@pytest.mark.parametrize("length, chunk, tile", [(1, 4, 1), (8, 4, 96), (11, 4, 1), (5, 16, 2**20), (13, 3, 60)])
def test_the_gradients_of_the_chunks_are_their_differences(
    length: int, chunk: int, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in tiles of one chunk and of several, the last of them smaller."""
    monkeypatch.setattr(decayed_sum, "TILE_ELEMENTS", tile)
    assert torch.autograd.gradcheck(lambda q, k, v: decayed_sum.decayed_sum(q, k, v, RATES, chunk), drawn(length))


def test_a_prototype_has_fewer_or_narrower_heads() -> None:
    wide = model_of({**MIXER, "num_attention_heads": 16, "head_dim": 128})
    mixer: Any = (
        scale_down(parse_spec({**wide, "hidden_size": 2048}), 200_000).spec.layer_groups[0].layers[0].sequence_mixer
    )
    assert mixer.num_attention_heads * mixer.head_dim < 1024
