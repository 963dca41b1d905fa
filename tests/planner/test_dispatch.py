"""Estimates of jobs follow the work, say what they rest on, and refuse what does not belong together."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from planner import (
    BenchmarkPlan,
    KernelsPlan,
    MachineProfile,
    PrototypePlan,
    UnsupportedPlan,
    VerifyPlan,
    estimate_job,
    flops,
    scale_down,
)
from planner.dispatch import SMALL_MODEL_SHARE, START_SECONDS, STEP_SECONDS
from planner.probes import AttentionCostPlan, GradientNormsPlan, ReachPlan, RouterLoadPlan
from tests.planner.published import JAMBA, LLAMA_2_7B

PROFILE = MachineProfile(
    device_name="two cores",
    memory_bytes=2**33,
    usable_memory_bytes=2**32,
    matmul_flops_per_second={"fp32": 2e11},
    measured_at=datetime.datetime(2026, 11, 1, tzinfo=datetime.UTC),
)


def test_a_prototype_takes_its_flops_over_the_measured_rate() -> None:
    plan = PrototypePlan(steps=100, batch_size=4, sequence_length=128)
    scaled = scale_down(LLAMA_2_7B, plan.parameter_budget, sequence_length=128)
    step = flops(scaled.spec, 128, 4, training=True).total
    estimate = estimate_job("prototype", LLAMA_2_7B, plan, PROFILE)
    by_hand = START_SECONDS + 100 * (step / (2e11 * SMALL_MODEL_SHARE) + STEP_SECONDS)
    assert estimate.seconds == pytest.approx(by_hand)
    # Weights and two moments in fp32, twice while a checkpoint is replaced.
    assert estimate.disk_bytes == 2 * 3 * 4 * scaled.parameters
    # fp32 weights, gradients and two moments at the least.
    assert estimate.memory_bytes >= 16 * scaled.parameters
    assert "2026-11-01" in estimate.basis
    assert estimate.status == "approximated"


def test_a_job_is_estimated_in_the_precision_that_it_will_choose() -> None:
    fast = PROFILE.model_copy(update={"matmul_flops_per_second": {"fp32": 2e11, "bf16": 8e11}})
    plans: tuple[tuple[str, Any], ...] = (("prototype", PrototypePlan(steps=9)), ("benchmark", BenchmarkPlan()))
    for kind, plan in plans:
        chosen = {name: plan.model_copy(update={"precision": name}) for name in ("fp32", "bf16_autocast")}
        for profile, name in ((fast, "bf16_autocast"), (PROFILE, "fp32"), (None, "fp32")):
            asked = estimate_job(kind, LLAMA_2_7B, plan, profile)
            assert asked == estimate_job(kind, LLAMA_2_7B, chosen[name], profile)


def test_twice_the_steps_take_twice_the_time_but_for_the_start() -> None:
    one, two = (
        estimate_job("prototype", JAMBA, PrototypePlan(steps=steps), PROFILE).seconds - START_SECONDS
        for steps in (100, 200)
    )
    assert two == pytest.approx(2 * one)


@pytest.mark.parametrize(
    "kind, plan",
    [
        ("prototype", PrototypePlan()),
        ("benchmark", BenchmarkPlan(precision="bf16_autocast")),
        ("verify", VerifyPlan()),
        ("kernels", KernelsPlan()),
        ("reach", ReachPlan()),
        ("attention_cost", AttentionCostPlan()),
        ("gradient_norms", GradientNormsPlan()),
    ],
)
def test_every_kind_is_estimated_without_a_profile_too(kind: str, plan: object) -> None:
    estimate = estimate_job(kind, LLAMA_2_7B, plan, None)  # type: ignore[arg-type]
    assert estimate.seconds > 0
    assert estimate.memory_bytes > 0
    assert estimate.basis
    if kind in ("prototype", "benchmark"):
        assert "not been measured" in estimate.basis


def test_a_plan_of_another_kind_is_refused() -> None:
    with pytest.raises(UnsupportedPlan) as caught:
        estimate_job("prototype", LLAMA_2_7B, VerifyPlan(), None)
    assert caught.value.path == "kind"


def test_a_budget_that_is_too_small_is_refused_before_anything_is_queued() -> None:
    with pytest.raises(UnsupportedPlan) as caught:
        estimate_job("prototype", JAMBA, PrototypePlan(parameter_budget=50_000), None)
    assert caught.value.path == "parameter_budget"


def test_probes_grow_with_their_work() -> None:
    def seconds(kind: str, plan: object) -> float:
        return estimate_job(kind, JAMBA, plan, PROFILE).seconds - START_SECONDS  # type: ignore[arg-type]

    once, twice = (seconds("gradient_norms", GradientNormsPlan(seeds=seeds)) for seeds in (2, 4))
    assert twice == pytest.approx(2 * once)
    assert seconds("reach", ReachPlan(depths=4)) < seconds("reach", ReachPlan(depths=16))
    trained, read = (RouterLoadPlan(steps=500), RouterLoadPlan(steps=500, prototype="a1"))
    assert seconds("router_load", read) < seconds("router_load", trained) / 10
    assert seconds("attention_cost", AttentionCostPlan(last_context=1024)) < seconds(
        "attention_cost", AttentionCostPlan()
    )
