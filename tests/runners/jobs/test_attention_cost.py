"""Attention's cost: crossovers of known curves, peaks of known tensors, and a small layer from end to end."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from planner import load, parse_spec
from planner.errors import UnsupportedPlan
from planner.plans import parse_plan
from planner.probes import AttentionCostPlan, attention_layer
from planner.spec import ArchitectureSpec
from runners.events import Result
from runners.jobs import attention_cost
from runners.jobs.attention_cost import Measured, Meter, side_of, where_one
from runners.jobs.base import JobContext, JobFailure
from runners.training.peak import peak_bytes

HEADS = {"kind": "attention", "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}


def stack(*mixers: dict[str, Any]) -> ArchitectureSpec:
    layers = [{"sequence_mixer": mixer} for mixer in mixers]
    return parse_spec({"vocab_size": 16, "hidden_size": 16, "layer_groups": [{"layers": layers}]})


def test_the_peak_is_of_what_is_held_at_once() -> None:
    def call() -> None:
        kept = torch.zeros(1000, 1000)
        dropped = torch.zeros(500, 1000)
        del dropped
        small = torch.zeros(250, 1000)
        del kept, small

    assert peak_bytes(call, "cpu") == 4 * (1_000_000 + 500_000)


def test_a_ratio_is_interpolated_in_logarithms() -> None:
    assert where_one({100: 0.5, 400: 2.0}) == pytest.approx(200)
    assert where_one({100: 0.5, 200: 4.0}) == pytest.approx(100 * 2 ** (1 / 3))
    # Between the neighbours that stand on different sides; of several such pairs, the last.
    assert where_one({100: 4.0, 400: 0.25}) == pytest.approx(200)
    assert where_one({50: 0.5, 60: 1.1, 100: 0.5, 400: 2.0, 800: 3.0}) == pytest.approx(200)


def test_a_side_is_taken_where_the_whole_interval_is_on_it() -> None:
    assert [side_of(found) for found in ((1.3, 1.1, 1.5), (0.8, 0.7, 0.95), (1.1, 0.95, 1.3))] == [1, -1, 0]


class KnownMeter(Meter):
    """Times that are formulas: one way is linear in the context, the other of its square."""

    def __init__(self, noise: float = 0.0) -> None:
        super().__init__({}, 16, AttentionCostPlan(), "cpu", torch.float32)
        self.asked: list[int] = []
        self.noise = noise

    def measure(self, length: int, ways: Sequence[str]) -> dict[str, Measured]:
        self.asked.append(length)
        seconds = {"square": 1e-6 * length**2, "linear": 1e-3 * length}
        jitter = [1.0 + self.noise * (-1) ** turn for turn in range(10)]
        return {
            way: Measured([seconds[way] * (factor if way == "square" else 1) for factor in jitter], 1) for way in ways
        }


def test_a_crossover_is_found_between_the_doublings() -> None:
    meter = KnownMeter()
    points = {length: meter.measure(length, ["square", "linear"]) for length in (256, 512, 1024, 2048)}
    found = meter.crossover("square", "linear", points)
    # 1e-6 L^2 = 1e-3 L at L = 1000, and a ratio of L / 1000 is a line in logarithms
    assert found["context"] == pytest.approx(1000)
    assert found["low"] <= 1000 <= found["high"]
    assert found["high"] - found["low"] < 256  # the bracket of 512 to 1,024 was halved
    assert found["faster"] == "linear"
    assert set(meter.asked[4:]) <= set(points)  # what was measured on the way is kept


def test_noise_makes_no_crossover() -> None:
    """Ratios that jump by a fifth say nothing from 800 to 1,250: the bracket is left as wide as that."""
    meter = KnownMeter(noise=0.2)
    points = {length: meter.measure(length, ["square", "linear"]) for length in (256, 512, 1024, 2048)}
    found = meter.crossover("square", "linear", points)
    assert found["low"] <= 832
    assert found["high"] >= 1248
    both = {1024: meter.measure(1024, ["square", "linear"])}
    assert meter.crossover("square", "linear", both)["faster"] is None


def test_without_a_crossover_the_faster_way_is_named() -> None:
    meter = KnownMeter()
    points = {length: meter.measure(length, ["square", "linear"]) for length in (128, 256)}
    found = meter.crossover("square", "linear", points)
    assert (found["context"], found["faster"], found["since"]) == (None, "square", 128)


def test_what_would_take_too_long_is_left_out() -> None:
    meter = Meter({}, 16, AttentionCostPlan(seconds_limit=4.0), "cpu", torch.float32)
    points = {1024: {"eager": Measured([1.2] * 10, 1), "sdpa": Measured([0.9] * 10, 1)}}
    assert list(meter.too_much(2048, points)) == ["eager"]  # four times 1.2 s
    assert list(meter.too_much(2048, {1024: {"sdpa": Measured([0.1] * 10, 2**50)}})) == ["sdpa"]


def test_a_layer_is_measured_in_every_way(tmp_path: pathlib.Path) -> None:
    plan = AttentionCostPlan(first_context=64, last_context=128, hidden_size=16)
    spec = stack(HEADS, {**HEADS, "sliding_window": 24})
    (result,) = [e for e in attention_cost.run(spec, plan, JobContext(tmp_path)) if isinstance(e, Result)]
    values = result.values
    assert values["layer"] == 1  # the first that hides earlier keys
    first, *_, last = values["contexts"]
    assert (first["context"], last["context"]) == (64, 128)
    # 64 rows of 24 keys, but for the first 23, which lack 23 + 22 … + 1
    assert first["density"] == pytest.approx((64 * 24 - 23 * 24 / 2) / 64**2)
    assert last["block_density"] == 1  # a block of 128 holds all
    for entry in (first, last):
        assert set(entry["ways"]) == set(values["ways"])
        for measured in entry["ways"].values():
            assert 0 < measured["low_seconds"] <= measured["median_seconds"] <= measured["high_seconds"]
    eager = [entry["ways"]["eager"]["peak_bytes"] for entry in (first, last)]
    assert eager[1] > 2 * 128 * 128 * 4  # scores of two heads, at the least
    assert eager[1] > 3 * eager[0]
    assert [row["error"] for row in values["rows"]] == [0, 0]
    pairs = [(found["first"], found["second"]) for found in values["crossovers"]]
    assert pairs == [("eager", "sdpa"), ("eager", "block_sparse"), ("sdpa", "block_sparse")]


@pytest.mark.parametrize(
    "mixer, why, ways",
    [
        (HEADS, "hides nothing", ["eager", "sdpa"]),
        ({**HEADS, "sliding_window": 24, "sinks": True}, "sinks", ["eager", "recomputed"]),
    ],
)
def test_a_way_is_measured_only_where_it_computes(
    mixer: dict[str, Any], why: str, ways: list[str], tmp_path: pathlib.Path
) -> None:
    plan = AttentionCostPlan(first_context=32, last_context=64, hidden_size=16)
    (result,) = [e for e in attention_cost.run(stack(mixer), plan, JobContext(tmp_path)) if isinstance(e, Result)]
    assert why in result.values["left_out"]["block_sparse"]
    assert result.values["ways"] == ways
    assert [row["error"] for row in result.values["rows"]] == [0, 0]


def test_a_first_context_that_does_not_fit_is_refused(tmp_path: pathlib.Path) -> None:
    plan = AttentionCostPlan(first_context=2**19, last_context=2**20)
    with pytest.raises(JobFailure, match="first_context: this needs"):
        list(attention_cost.run(stack(HEADS), plan, JobContext(tmp_path)))


def test_layers_without_attention_are_refused_by_field() -> None:
    state = {"kind": "mamba2", "num_heads": 4, "head_dim": 8, "state_size": 8, "chunk_size": 16}
    with pytest.raises(UnsupportedPlan) as caught:
        attention_layer(stack(state), AttentionCostPlan())
    assert caught.value.path == "layer_groups"
    with pytest.raises(UnsupportedPlan) as caught:
        attention_layer(stack(state, HEADS), AttentionCostPlan(layer=0))
    assert caught.value.path == "layer"
    assert "1" in str(caught.value.remedy)
    with pytest.raises(UnsupportedPlan) as caught:
        parse_plan(AttentionCostPlan, {"first_context": 512, "last_context": 600})
    assert caught.value.path == "last_context"


def test_the_layer_keeps_its_window_in_a_narrow_stream() -> None:
    from planner.probes import narrowed_layer

    small = narrowed_layer(load("mistral-7b"), 5, AttentionCostPlan(hidden_size=64)).spec
    assert (small.num_layers, small.hidden_size) == (1, 64)
    assert small.layer_groups[0].layers[0].sequence_mixer.sliding_window == 4096  # type: ignore[union-attr]
    assert small.layer_groups[0].layers[0].channel_mixer is None
