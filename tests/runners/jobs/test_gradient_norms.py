"""Gradient norms by depth, against differences of the loss, and the placements that a design can have."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from planner import load, parse_spec
from planner.errors import UnsupportedPlan
from planner.plans import parse_plan
from planner.probes import GradientNormsPlan, with_norm_placement
from planner.sizing import count_parameters
from planner.spec import ArchitectureSpec
from runners.events import Log, Result
from runners.jobs import gradient_norms
from runners.jobs.base import JobContext, JobFailure
from runners.models import build


def small(**layer: Any) -> ArchitectureSpec:
    mixer = {"kind": "attention", "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    one = {"sequence_mixer": mixer, "channel_mixer": {"kind": "mlp", "intermediate_size": 32}, **layer}
    groups = [{"repeats": 3, "layers": [one]}]
    return parse_spec({"vocab_size": 256, "hidden_size": 16, "layer_groups": groups})


def test_norms_are_slopes_of_the_loss() -> None:
    model = build(small(), dtype=torch.float64, kernels="reference")
    tokens = torch.randint(0, 256, (2, 12), generator=torch.Generator().manual_seed(3))
    found = gradient_norms.norms_by_depth(model, tokens)

    def loss_from(depth: int, stream: torch.Tensor) -> torch.Tensor:
        for layer in model.layers[depth:]:
            stream = layer(stream)
        return F.cross_entropy(model.head(stream)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())

    stream = model.embed(tokens).detach()
    for depth in range(4):
        leaf = stream.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss_from(depth, leaf), leaf)
        step = 1e-5 * gradient / gradient.norm()
        with torch.no_grad():
            slope = (loss_from(depth, stream + step) - loss_from(depth, stream - step)).item() / 2e-5
            assert found["stream"][depth] == pytest.approx(slope, rel=1e-5)
            stream = model.layers[depth](stream) if depth < 3 else stream


def test_norms_of_the_parameters_add_up_to_the_whole() -> None:
    model = build(small())
    tokens = torch.randint(0, 256, (2, 12), generator=torch.Generator().manual_seed(3))
    layers = gradient_norms.norms_by_depth(model, tokens)["parameters"]
    assert all(parameter.grad is None for parameter in model.parameters())  # nothing is left behind
    loss = model(tokens, labels=tokens).loss
    assert loss is not None
    loss.backward()
    outside = [p.grad.square().sum() for name, p in model.named_parameters() if ".layers" not in f".{name}"]
    whole = torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9).item()
    assert sum(norm**2 for norm in layers) + sum(map(float, outside)) == pytest.approx(whole**2, rel=1e-5)


def test_placements_differ_in_their_norms_alone() -> None:
    counts = {
        placement: count_parameters(with_norm_placement(small(), placement)).total  # type: ignore[arg-type]
        for placement in ("pre", "post", "sandwich", "after_residual")
    }
    # two norms of 16 weights a layer; a sandwich has two more in each of 3 layers
    assert counts["post"] == counts["after_residual"] == counts["pre"]
    assert counts["sandwich"] - counts["pre"] == 3 * 2 * 16


def test_every_placement_is_measured_before_and_after_training(tmp_path: pathlib.Path) -> None:
    plan = GradientNormsPlan(hidden_size=16, steps=2, seeds=2, batch_size=1, sequence_length=16)
    events = list(gradient_norms.run(small(), plan, JobContext(tmp_path)))
    (result,) = [event for event in events if isinstance(event, Result)]
    assert result.kind == "gradient_norms"
    found = {entry["placement"]: entry for entry in result.values["placements"]}
    assert list(found) == ["pre", "post", "sandwich", "after_residual"]
    for entry in found.values():
        for stage in ("initial", "trained"):
            assert [len(entry[stage][name]["median"]) for name in ("stream", "parameters")] == [4, 3]
            stream = entry[stage]["stream"]
            ordered = zip(*map(stream.get, ("low", "median", "high")), strict=True)
            assert all(0 < low <= middle <= high for low, middle, high in ordered)
        assert entry["initial"]["stream"] != entry["trained"]["stream"]
    assert list(tmp_path.iterdir()) == []  # what training left on the way is gone


def test_a_placement_that_a_design_cannot_have_is_left_out_with_its_reason(tmp_path: pathlib.Path) -> None:
    plan = GradientNormsPlan(hidden_size=16, steps=0, seeds=1, batch_size=1, sequence_length=16)
    events = list(gradient_norms.run(small(residual="parallel"), plan, JobContext(tmp_path)))
    (result,) = [event for event in events if isinstance(event, Result)]
    assert "after_residual" in result.values["skipped"]
    assert any(isinstance(event, Log) and "norm_placement" in event.message for event in events)
    assert [entry["trained"] for entry in result.values["placements"]] == [None] * 3
    alone = GradientNormsPlan(hidden_size=16, steps=0, placements=("after_residual",), sequence_length=16)
    with pytest.raises(JobFailure, match="placements"):
        list(gradient_norms.run(small(residual="parallel"), alone, JobContext(tmp_path)))


def test_bad_plans_are_refused_by_field(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UnsupportedPlan) as caught:
        parse_plan(GradientNormsPlan, {"placements": ["middle"]})
    assert caught.value.path.startswith("placements")
    with pytest.raises(JobFailure, match="hidden_size: this needs"):
        list(gradient_norms.run(load("llama-3.1-405b"), GradientNormsPlan(hidden_size=4096), JobContext(tmp_path)))
    with pytest.raises(JobFailure, match="sequence_length"):
        list(gradient_norms.run(load("gpt2"), GradientNormsPlan(sequence_length=2048), JobContext(tmp_path)))
