"""Reach as gradients give it: the values by hand, and the planner's sets for every kind of mixer."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from planner import load, parse_spec
from planner.errors import UnsupportedPlan
from planner.plans import parse_plan
from planner.probes import ReachPlan
from planner.reach import held_bytes, narrowed_for_reach
from planner.spec import ArchitectureSpec
from runners.events import Result
from runners.jobs import reach
from runners.jobs.base import JobContext, JobFailure
from runners.models import build
from runners.training.peak import peak_bytes

MLP = {"kind": "mlp", "intermediate_size": 32}
PLAN = ReachPlan(sequence_length=48, keep_windows=True, hidden_size=16)


def values_of(spec: ArchitectureSpec, plan: ReachPlan, directory: pathlib.Path) -> dict[str, Any]:
    (result,) = [event for event in reach.run(spec, plan, JobContext(directory)) if isinstance(event, Result)]
    assert result.kind == "reach"
    return dict(result.values)


def stack(repeats: int, **mixer: Any) -> ArchitectureSpec:
    groups = [{"repeats": repeats, "layers": [{"sequence_mixer": mixer, "channel_mixer": MLP}]}]
    return parse_spec({"vocab_size": 256, "hidden_size": 16, "layer_groups": groups})


HEADS = {"kind": "attention", "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}


@pytest.mark.parametrize(
    "mixer, expected, counts",
    [
        ({**HEADS, "sliding_window": 5}, [5, 9, 13], [5, 9, 13]),  # n (w - 1) + 1
        ({**HEADS, "sliding_window": 3, "dilation": 4}, [9, 17, 25], [3, 5, 7]),  # n (w - 1) r + 1, every fourth
        ({**HEADS, "attention_chunk_size": 20}, [8, 8, 8], [8, 8, 8]),  # 47 is the eighth of the third chunk
        ({**HEADS}, [48, 48, 48], [48, 48, 48]),
        ({"kind": "short_convolution", "conv_kernel": 3}, [3, 5, 7], [3, 5, 7]),
    ],
)
def test_gradients_lead_as_far_as_counted_by_hand(
    mixer: dict[str, Any], expected: list[int], counts: list[int], tmp_path: pathlib.Path
) -> None:
    values = values_of(stack(3, **mixer), PLAN, tmp_path)
    depths = values["depths"]
    assert [depth["depth"] for depth in depths] == [1, 2, 3]
    assert [depth["measured"] for depth in depths] == expected
    assert [depth["measured_count"] for depth in depths] == counts
    assert [depth["predicted"] for depth in depths] == expected
    assert all(depth["equal"] for depth in depths)
    assert all(row["error"] == 0 for row in values["rows"])


@pytest.mark.parametrize(
    "mask, farthest, count",
    [
        ({"sliding_window": 3, "global_tokens": 2}, 48, 5),  # 45 to 47, and 0 and 1
        ({"sliding_window": 3, "stride": 8}, 41, 8),  # 45 to 47, and 39, 31, 23, 15 and 7
        ({"attention_chunk_size": 20, "previous_chunks": 1}, 28, 28),  # from 20, where the chunk before begins
        ({"attention_chunk_size": 16, "chunk_summaries": 2}, 34, 20),  # 32 to 47, and 14, 15, 30 and 31
    ],
)
def test_every_mask_shows_what_it_says(mask: dict[str, int], farthest: int, count: int, tmp_path: pathlib.Path) -> None:
    depths = values_of(stack(3, **HEADS, **mask), PLAN, tmp_path)["depths"]
    assert (depths[0]["measured"], depths[0]["measured_count"]) == (farthest, count)
    assert all(depth["equal"] for depth in depths)


def test_pairs_of_the_score_matrix_are_counted(tmp_path: pathlib.Path) -> None:
    (mask,) = values_of(stack(1, **HEADS, sliding_window=5), PLAN, tmp_path)["masks"]
    # 48 rows of 5 keys, but for the first four, which see 1 to 4: 240 - (4 + 3 + 2 + 1)
    assert mask["measured_pairs"] == mask["predicted_pairs"] == 230
    assert mask["measured_density"] == pytest.approx(230 / 2304)
    assert mask["scored"]


def test_nothing_comes_from_later_positions(tmp_path: pathlib.Path) -> None:
    plan = ReachPlan(sequence_length=32, position=20, keep_windows=True, hidden_size=16)
    (depth,) = values_of(stack(1, **HEADS, sliding_window=4), plan, tmp_path)["depths"]
    seen = [place for place, log in enumerate(depth["log10_norms"]) if log is not None]
    assert seen == [17, 18, 19, 20]


def test_a_wrong_prediction_is_said(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from planner.components import Attention
    from planner.components.dependence import window_before

    monkeypatch.setattr(Attention, "reads", lambda self, chosen: window_before(chosen, 6))
    (depth,) = values_of(stack(1, **HEADS, sliding_window=5), PLAN, tmp_path)["depths"]
    assert (depth["predicted"], depth["measured"], depth["missing"], depth["equal"]) == (6, 5, 1, False)


def test_keys_of_an_earlier_layer_reach_no_further_than_that_layer_saw(tmp_path: pathlib.Path) -> None:
    layers = [
        {"sequence_mixer": {**HEADS, "sliding_window": 5, "shares_key_values": shared}, "channel_mixer": MLP}
        for shared in (False, True)
    ]
    spec = parse_spec({"vocab_size": 256, "hidden_size": 16, "layer_groups": [{"layers": layers}]})
    values = values_of(spec, PLAN, tmp_path)
    assert [depth["measured"] for depth in values["depths"]] == [5, 5]
    assert all(depth["equal"] for depth in values["depths"])


@pytest.mark.parametrize("name, length", [("mistral-7b", 256), ("deepseek-v2-lite", 128), ("tiny-hybrid", 512)])
def test_what_is_held_is_no_less_than_what_was_allocated(name: str, length: int) -> None:
    plan = ReachPlan(sequence_length=length)
    small = narrowed_for_reach(load(name), 32, length, keep_windows=False).spec
    model = build(small, dtype=torch.float64, kernels="reference")
    peak = peak_bytes(lambda: list(reach.gradient_profiles(model, plan, [small.num_layers])), "cpu")
    assert peak < held_bytes(small, length, plan.element_bytes) < 3 * peak


def test_what_does_not_fit_is_refused_before_it_is_built(tmp_path: pathlib.Path) -> None:
    plan = ReachPlan(sequence_length=4096, hidden_size=1024)
    with pytest.raises(JobFailure, match="sequence_length: this needs"):
        list(reach.run(load("llama-3.1-405b"), plan, JobContext(tmp_path)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "pattern-hybrid-7b", "lfm2-1.2b", "rwkv-4-7b", "llama-4-scout", "gpt-oss-20b", "jamba-v0.1",
        "recurrentgemma-2b", "falcon-h1-7b", "kimi-linear-48b-a3b", "minimax-text-01", "qwen3-next-80b-a3b",
    ],
)  # fmt: skip
def test_predicted_sets_are_measured_ones_for_every_kind_of_mixer(name: str, tmp_path: pathlib.Path) -> None:
    plan = ReachPlan(sequence_length=96, hidden_size=16, depths=6)
    values = values_of(load(name), plan, tmp_path)
    assert [depth["depth"] for depth in values["depths"] if not depth["equal"]] == []
    assert [mask["label"] for mask in values["masks"] if mask["predicted_pairs"] != mask["measured_pairs"]] == []
    assert values["num_layers"] == load(name).num_layers


def test_bad_plans_are_refused_by_field(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UnsupportedPlan) as caught:
        parse_plan(ReachPlan, {"sequence_length": 16, "position": 16})
    assert caught.value.path == "position"
    assert "15" in str(caught.value.remedy)
    with pytest.raises(ValidationError):
        ReachPlan(sequence_length=1)
    with pytest.raises(JobFailure, match="sequence_length"):
        list(reach.run(load("gpt2"), ReachPlan(sequence_length=2048), JobContext(tmp_path)))
