"""Time, energy and money of a run, worked out by hand."""

from __future__ import annotations

import math

import pytest

from planner.errors import UnsupportedPlan
from planner.hardware import hardware
from planner.step_time.records import StepTime, unknown
from planner.step_time.run_cost import Interruptions, best_interval, run_cost

STEP = StepTime(2.0, 1.8, 2.4, {"matmul": 2.0}, 1.0, 1_000_000, 8, 8e15, 8e15, 1e15, "hopper")
H100 = hardware("h100").model_copy(update={"power_watts": 700, "price_per_hour_usd": 3.0})


def test_a_run_without_interruptions_is_its_steps() -> None:
    found = run_cost(STEP, H100, 1_800_000_000)
    assert (found.steps, found.work_seconds, found.goodput) == (1800, 3600.0, 1.0)
    assert found.device_hours == pytest.approx(8.0)
    assert found.energy_kwh == pytest.approx(5.6)
    assert found.price_usd == pytest.approx(24.0)


def test_tokens_are_rounded_up_to_steps() -> None:
    assert run_cost(STEP, H100, 1_000_001).steps == 2


def test_young_s_interval_is_near_the_best() -> None:
    # δ = 60 s, M = 24 h: √(2 · 60 · 86,400) = 3,220 s; Daly's is 1.0062 times that, less δ.
    share = 60 / (2 * 86_400)
    young = math.sqrt(2 * 60 * 86_400)
    assert best_interval(60, 86_400) == pytest.approx(young * (1 + math.sqrt(share) / 3 + share / 9) - 60)
    assert best_interval(60, 86_400) == pytest.approx(young, rel=0.02)
    assert best_interval(10, 4) == 4


def test_failures_cost_what_daly_says() -> None:
    # Eight devices that each fail once in 80 hours: M = 10 h. τ = 1 h, δ = 60 s, R = 600 s.
    lasting = Interruptions(60, 600, 80.0, 3600)
    found = run_cost(STEP, H100, 18_000_000_000, lasting)
    work, between = 36_000.0, 36_000.0
    total = between * math.exp(600 / between) * (math.exp(3660 / between) - 1) * work / 3600
    assert found.work_seconds == work
    assert found.total_seconds == pytest.approx(total)
    assert found.checkpoint_seconds == pytest.approx(60 * 10)
    assert 0.9 < found.goodput < 0.95


def test_a_checkpoint_that_takes_no_time_costs_none() -> None:
    found = run_cost(STEP, hardware("h100"), 1e9, Interruptions(1e-300, 1e-300))
    assert found.goodput == pytest.approx(1)


def test_more_devices_fail_more_often() -> None:
    few = run_cost(STEP, H100, 1e12, Interruptions(60, 600))
    many = StepTime(2.0, 1.8, 2.4, {}, 1.0, 1_000_000, 16_384, 8e15, 8e15, 1e15, "hopper")
    assert run_cost(many, H100, 1e12, Interruptions(60, 600)).goodput < few.goodput


def test_failures_that_leave_no_time_are_refused() -> None:
    with pytest.raises(UnsupportedPlan) as caught:
        run_cost(STEP, H100, 1e9, Interruptions(60, 6000, 1.0))
    assert caught.value.problems[0].path == "device_hours_between_failures"


def test_without_a_step_s_time_there_is_no_cost() -> None:
    with pytest.raises(UnsupportedPlan) as caught:
        run_cost(unknown(1, 1, 1, 1, "No device."), H100, 1e9)
    assert "No device." in str(caught.value)


def test_what_is_not_known_of_a_device_is_said() -> None:
    bare = H100.model_copy(update={"power_watts": None, "price_per_hour_usd": None})
    found = run_cost(STEP, bare, 1e9)
    assert found.energy_kwh is None
    assert found.price_usd is None
    assert len(found.notes) == 2


def test_checkpoints_that_take_no_time_lose_no_work_and_are_the_limit_of_short_ones() -> None:
    # Daly's total for τ and δ towards nothing: T·e^(R/M). Eight devices that fail once in 80 hours each: M = 10 h.
    free = Interruptions(0.0, 600.0, device_hours_between_failures=80.0)
    found = run_cost(STEP, H100, 1_800_000_000, free)
    assert found.total_seconds == pytest.approx(3600 * math.exp(600 / 36_000))
    assert found.checkpoint_seconds == 0
    short = run_cost(STEP, H100, 1_800_000_000, Interruptions(1e-9, 600.0, device_hours_between_failures=80.0))
    assert found.total_seconds == pytest.approx(short.total_seconds, rel=1e-5)
