"""Routers in training: what is added to the loss, how biases move, and that none of it is there unless asked for."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import pytest
import torch

from planner import ArchitectureSpec, PrototypePlan, UnsupportedPlan, load, parse_plan, parse_spec
from planner.dispatch import estimate_job
from runners.events import Metric, Result
from runners.jobs import prototype
from runners.jobs.base import JobContext
from runners.models import build
from runners.models.moe import Routing, load_balancing_loss, recorded_routing, router_z_loss
from runners.training.data import Text, load_text
from runners.training.loop import Step, Trainer, TrainingSettings
from runners.training.routing import UNBALANCED, RouterSettings, balance, recorded, router_loss, summary

MOE: dict[str, Any] = {"kind": "moe", "num_experts": 4, "num_experts_per_tok": 1, "intermediate_size": 16}
EXPERTS = ["layers.0.channel_mixer", "layers.1.channel_mixer"]


def spec_of(moe: dict[str, Any]) -> ArchitectureSpec:
    attention = {"kind": "attention", "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    layer = {"sequence_mixer": attention, "channel_mixer": moe}
    return parse_spec({"vocab_size": 256, "hidden_size": 16, "layer_groups": [{"repeats": 2, "layers": [layer]}]})


@pytest.fixture(scope="module")
def text() -> Text:
    return load_text("python-stdlib")


def trainer(
    directory: pathlib.Path, text: Text, router: RouterSettings, moe: dict[str, Any] = MOE, steps: int = 5
) -> Trainer:
    settings = TrainingSettings(
        steps=steps, batch_size=4, sequence_length=32, peak_rate=3e-3, warmup_steps=2, weight_decay=0.1,
        gradient_clip=1.0, seed=0, evaluate_every=3, checkpoint_every=2, bf16=False, device="cpu", router=router,
    )  # fmt: skip
    return Trainer(build(spec_of(moe)), text, settings, directory)


def test_without_settings_routers_are_looked_at_in_evaluations_alone(tmp_path: pathlib.Path, text: Text) -> None:
    trained = trainer(tmp_path, text, UNBALANCED)
    steps = list(trained.run())
    assert [step.router is not None for step in steps] == [False, False, True, False, True]
    found = steps[-1].router
    assert found is not None
    assert list(found.load) == EXPERTS
    assert all(sum(load) == pytest.approx(1) for load in found.load.values())
    assert found.largest_load == pytest.approx(4 * max(max(load) for load in found.load.values()))
    with recorded(trained.model, UNBALANCED, False) as nothing:
        assert nothing == {}
        assert not any(module._forward_hooks for module in trained.model.modules())


def test_the_trained_loss_has_each_loss_by_its_factor_and_the_reported_one_has_none(
    tmp_path: pathlib.Path, text: Text
) -> None:
    """Gradients by hand: of the loss, and of the means over both layers times 0.3 and 0.05."""
    trained = trainer(tmp_path, text, RouterSettings(auxiliary_loss=0.3, z_loss=0.05), steps=1)
    copy = build(trained.model.spec)
    tokens = trained._batch(text.training, 0, 0)
    with recorded_routing(copy) as routing:
        plain = copy(tokens, labels=tokens).loss
    assert plain is not None
    one, two = routing.values()
    balanced = (load_balancing_loss(one) + load_balancing_loss(two)) / 2
    z_loss = (router_z_loss(one) + router_z_loss(two)) / 2
    (plain + 0.3 * balanced + 0.05 * z_loss).backward()
    norm = torch.stack([p.grad.norm() for p in copy.parameters() if p.grad is not None]).norm().item()
    (step,) = trained.run()
    assert step.loss == pytest.approx(plain.item())
    assert step.gradient_norm == pytest.approx(norm, rel=1e-5)
    assert step.router is not None
    assert step.router.auxiliary_loss == pytest.approx(balanced.item())
    assert step.router.z_loss == pytest.approx(z_loss.item())


def test_biases_move_against_the_load_of_their_experts() -> None:
    """Of eight tokens five, one, two and none go to four experts: two would be even."""
    moe = {**MOE, "router_scores": "sigmoid", "score_correction_bias": True}
    model = build(spec_of(moe))
    component = model.spec.layer_groups[0].layers[0].channel_mixer
    assert component is not None
    assert component.kind == "moe"
    chosen = torch.tensor([0, 0, 0, 0, 0, 1, 2, 2])[:, None]
    routing = {EXPERTS[1]: Routing(component, torch.zeros(8, 4), chosen)}
    balance(model, routing, 0.01)
    assert model.get_buffer(f"{EXPERTS[1]}.router.score_correction_bias").tolist() == pytest.approx(
        [-0.01, 0.01, 0, 0.01]
    )
    assert not model.get_buffer(f"{EXPERTS[0]}.router.score_correction_bias").any()
    found = summary(routing)
    assert found is not None
    assert found.load == {EXPERTS[1]: (5 / 8, 1 / 8, 2 / 8, 0)}
    assert found.largest_load == 5 / 2
    assert router_loss(routing, RouterSettings(bias_update_rate=0.01)) is None


def busiest(steps: list[Step]) -> float:
    """What the busiest expert of any layer took in the later half of the steps that tell, over its even share."""
    told = [step.router for step in steps if step.router is not None]
    later = told[len(told) // 2 :]
    return max(
        4 * max(sum(each) / len(later) for each in zip(*(router.load[name] for router in later), strict=True))
        for name in EXPERTS
    )


@pytest.mark.parametrize("router", [RouterSettings(auxiliary_loss=1.0), RouterSettings(bias_update_rate=0.02)], ids=str)
def test_what_starts_collapsed_is_evened_out(router: RouterSettings, tmp_path: pathlib.Path, text: Text) -> None:
    """A router that begins with one expert far ahead: left alone it stays, balanced it spreads."""
    moe = {**MOE, "router_scores": "sigmoid", "score_correction_bias": True, "router_bias": True}

    def collapsed(settings: RouterSettings, name: str) -> float:
        trained = trainer(tmp_path / name, text, settings, moe, steps=60)
        with torch.no_grad():
            for layer in range(2):
                trained.model.get_parameter(f"layers.{layer}.channel_mixer.router.bias")[0] = 0.5
        return busiest(list(trained.run()))

    assert collapsed(UNBALANCED, "alone") > 3
    assert collapsed(router, "balanced") < 2


def test_a_resumed_run_has_the_biases_of_the_one_before(tmp_path: pathlib.Path, text: Text) -> None:
    moe = {**MOE, "router_scores": "sigmoid", "score_correction_bias": True}
    settings = RouterSettings(bias_update_rate=0.01)
    whole = [(step.loss, step.router) for step in trainer(tmp_path / "whole", text, settings, moe).run()]
    first = trainer(tmp_path / "parts", text, settings, moe).run()
    for _ in range(4):
        next(first)
    first.close()  # type: ignore[attr-defined]
    again = trainer(tmp_path / "parts", text, settings, moe)
    assert again.resume() == 2
    assert again.model.get_buffer(f"{EXPERTS[0]}.router.score_correction_bias").abs().max() == pytest.approx(0.02)
    assert [(step.loss, step.router) for step in again.run()] == whole[2:]


def test_weights_from_before_biases_were_kept_are_still_read(tmp_path: pathlib.Path, text: Text) -> None:
    from safetensors.torch import load_file, save_file

    from runners.training.checkpoint import load_weights

    moe = {**MOE, "score_correction_bias": True}
    trained = trainer(tmp_path, text, UNBALANCED, moe)
    list(trained.run())
    path = tmp_path / "checkpoint" / "model.safetensors"
    held = load_file(path)
    assert f"{EXPERTS[0]}.router.score_correction_bias" in held
    save_file({name: value for name, value in held.items() if "correction" not in name}, path)
    fresh = build(trained.model.spec, seed=5)
    load_weights(tmp_path, fresh)
    assert torch.equal(fresh.embed_tokens.weight, trained.model.embed_tokens.weight)


@pytest.mark.parametrize(
    "field, name, code",
    [
        ("router_auxiliary_loss", "gpt2", "no_router"),
        ("router_z_loss", "gpt2", "no_router"),
        ("router_bias_update_rate", "gpt2", "no_router"),
        ("router_bias_update_rate", "mixtral-8x7b", "no_score_correction"),
    ],
)
def test_settings_without_an_effect_are_refused_by_field(
    field: str, name: str, code: str, tmp_path: pathlib.Path
) -> None:
    plan = PrototypePlan(**{field: 0.01})
    for refused in (
        lambda: estimate_job("prototype", load(name), plan),
        lambda: list(prototype.run(load(name), plan, JobContext(tmp_path))),
    ):
        with pytest.raises(UnsupportedPlan) as caught:
            refused()
        assert (caught.value.path, caught.value.code) == (field, code)
        assert caught.value.remedy
    estimate_job("prototype", load("gpt2"), PrototypePlan(**{field: 0.0}))


@pytest.mark.parametrize("field", ["router_auxiliary_loss", "router_z_loss", "router_bias_update_rate"])
def test_negative_factors_are_refused(field: str) -> None:
    with pytest.raises(UnsupportedPlan) as caught:
        parse_plan(PrototypePlan, {field: -0.1})
    assert caught.value.path == field


def test_a_prototype_tells_losses_and_loads(tmp_path: pathlib.Path) -> None:
    plan = PrototypePlan(
        parameter_budget=150_000, steps=4, batch_size=2, sequence_length=32, evaluate_every=3, sample_tokens=0,
        router_auxiliary_loss=0.02, router_z_loss=0.001, router_bias_update_rate=0.001,
    )  # fmt: skip
    spec = spec_of({**MOE, "num_experts_per_tok": 2, "router_scores": "sigmoid", "score_correction_bias": True})
    events = list(prototype.run(spec, plan, JobContext(tmp_path)))
    steps = {name: [e.step for e in events if isinstance(e, Metric) and e.name == f"router/{name}"]
             for name in ("auxiliary_loss", "z_loss", "largest_load")}  # fmt: skip
    assert list(steps.values()) == [[0, 1, 2, 3]] * 3
    values = next(event for event in events if isinstance(event, Result)).values
    assert values["router_load"]["step"] == 3
    assert len(values["router_load"]["layers"]) == len(values["spec"]["layer_groups"]) * 2
    assert all(sum(load) == pytest.approx(2) for load in values["router_load"]["layers"].values())
    assert dataclasses.asdict(UNBALANCED) == {"auxiliary_loss": 0.0, "z_loss": 0.0, "bias_update_rate": 0.0}
