"""Load by expert: figures by hand and by drawing lots, a router that is known, and weights of a prototype."""

from __future__ import annotations

import math
import pathlib
from typing import Any

import numpy as np
import pytest
import torch

from planner import PrototypePlan, load, parse_spec
from planner.dispatch import estimate_job
from planner.errors import UnsupportedPlan
from planner.plans import parse_plan
from planner.probes import RouterLoadPlan
from planner.prototype import scale_down
from planner.spec import ArchitectureSpec
from runners.events import Result
from runners.jobs import prototype, router_load
from runners.jobs.base import JobContext, JobFailure
from runners.models import build
from runners.training.checkpoint import load_weights
from runners.training.data import load_text

PLAN = RouterLoadPlan(parameter_budget=60_000, steps=2, batch_size=2, sequence_length=16, batches=2)


def mixture() -> ArchitectureSpec:
    mixer = {"kind": "attention", "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    experts = {
        "kind": "moe", "num_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 16, "router_bias": True,
    }  # fmt: skip
    layers = [
        {"sequence_mixer": mixer, "channel_mixer": {"kind": "mlp", "intermediate_size": 32}},
        {"sequence_mixer": mixer, "channel_mixer": experts},
    ]
    return parse_spec({"vocab_size": 256, "hidden_size": 16, "layer_groups": [{"repeats": 2, "layers": layers}]})


def values_of(plan: RouterLoadPlan, directory: pathlib.Path) -> dict[str, Any]:
    events = router_load.run(mixture(), plan, JobContext(directory))
    (result,) = [event for event in events if isinstance(event, Result)]
    assert result.kind == "router_load"
    return dict(result.values)


def test_figures_by_hand() -> None:
    figures = router_load.load_figures([6, 2, 0, 0], tokens=4, experts_per_token=2)
    assert figures["mean"] == 2
    assert figures["max_over_mean"] == 3
    assert figures["variation"] == pytest.approx(math.sqrt((16 + 0 + 4 + 4) / 4) / 2)
    # -(3/4 ln 3/4 + 1/4 ln 1/4) = 0.562335 of ln 4 = 1.386294
    assert figures["entropy"] == pytest.approx(0.562335 / 1.386294, rel=1e-5)
    assert figures["idle"] == 2
    even = router_load.load_figures([3, 3, 3, 3], tokens=6, experts_per_token=2)
    assert (even["variation"], even["entropy"], even["max_over_mean"]) == (0, pytest.approx(1), 1)


def test_chance_is_what_drawing_lots_gives() -> None:
    generator = np.random.default_rng(0)
    tokens, experts, chosen = 50, 8, 3
    squares = []
    for _ in range(400):
        picks = np.argsort(generator.random((tokens, experts)), axis=1)[:, :chosen]
        counts = np.bincount(picks.ravel(), minlength=experts)
        squares.append((counts.std() / counts.mean()) ** 2)
    figures = router_load.load_figures([1] * experts, tokens, chosen)
    assert figures["chance_variation"] == pytest.approx(math.sqrt(np.mean(squares)), rel=0.05)


def test_a_router_that_always_chooses_the_same_is_seen_to() -> None:
    model = build(mixture())
    with torch.no_grad():
        model.layers[1].channel_mixer.router.bias.copy_(torch.tensor([0.0, 20.0, 0.0, 20.0]))
        model.layers[3].channel_mixer.router.bias.copy_(torch.tensor([20.0, 22.0, 0.0, 0.0]))
    loads = router_load.loads_by_layer(model, load_text("python-stdlib"), PLAN, "cpu")
    assert loads == {1: [0, 64, 0, 64], 3: [64, 64, 0, 0]}  # two batches of two sequences of 16


def test_load_is_counted_before_and_after_training(tmp_path: pathlib.Path) -> None:
    values = values_of(PLAN, tmp_path)
    assert [stage["stage"] for stage in values["stages"]] == ["initial", "trained"]
    for stage in values["stages"]:
        assert [layer["layer"] for layer in stage["layers"]] == [1, 3]
        assert all(sum(layer["counts"]) == 64 * 2 for layer in stage["layers"])
        assert [layer["mean"] for layer in stage["layers"]] == [32, 32]  # 64 tokens, 2 of 4 experts each
    assert values["tokens"] == 64


def test_weights_of_a_prototype_are_read_in_place_of_training(tmp_path: pathlib.Path) -> None:
    trained, probe = tmp_path / "p1", tmp_path / "p2"
    trained.mkdir()
    probe.mkdir()
    made = PrototypePlan(parameter_budget=60_000, steps=2, batch_size=2, sequence_length=16, sample_tokens=0)
    list(prototype.run(mixture(), made, JobContext(trained)))
    values = values_of(PLAN.model_copy(update={"prototype": "p1"}), probe)
    model = build(scale_down(mixture(), 60_000, sequence_length=16).spec)
    load_weights(trained, model)
    expected = router_load.loads_by_layer(model, load_text("python-stdlib"), PLAN, "cpu")
    assert {layer["layer"]: layer["counts"] for layer in values["stages"][1]["layers"]} == expected
    for plan in (PLAN.model_copy(update={"prototype": "p3"}),):
        with pytest.raises(JobFailure, match="prototype"):
            values_of(plan, probe)


def test_designs_without_experts_are_refused_before_and_in_the_job(tmp_path: pathlib.Path) -> None:
    for refused in (
        lambda: list(router_load.run(load("gpt2"), PLAN, JobContext(tmp_path))),
        lambda: estimate_job("router_load", load("gpt2"), PLAN),
    ):
        with pytest.raises(UnsupportedPlan) as caught:
            refused()
        assert caught.value.path == "layer_groups"
        assert "moe" in str(caught.value.remedy)


def test_a_prototype_is_named_and_no_path() -> None:
    with pytest.raises(UnsupportedPlan) as caught:
        parse_plan(RouterLoadPlan, {"prototype": "../elsewhere"})
    assert caught.value.path == "prototype"
