"""Bubbles of pipelines against the papers' formulas, worked out by hand."""

from __future__ import annotations

import pytest

from planner.step_time.pipeline import StageTime, bubble, slowest, step

EQUAL = [StageTime(1.0, 2.0, 1.0)] * 4


def test_1f1b_of_equal_stages_takes_as_many_turns_as_micro_batches_and_stages_less_one() -> None:
    # (8 + 4 − 1) × 3 seconds; the bubble is 3/8 of the work (arXiv:2104.04473, section 2.2).
    assert step(EQUAL, 8, "1f1b") == pytest.approx(33.0)
    assert bubble(EQUAL, "1f1b") / (8 * 3.0) == pytest.approx(3 / 8)


def test_interleaving_divides_the_bubble() -> None:
    assert bubble(EQUAL, "interleaved", 3) == pytest.approx(9.0 / 3)


def test_zero_bubble_fills_the_gaps_with_gradients_of_weights() -> None:
    # (p − 1)(F + B − W) of ZB-H1 with F = B = W = 1 (arXiv:2401.10241, table 2).
    assert bubble(EQUAL, "zero_bubble") == pytest.approx(3.0)


def test_the_slowest_stage_decides_and_the_others_fill_and_drain() -> None:
    stages = [StageTime(1.0, 2.0, 1.0), StageTime(2.0, 4.0, 2.0), StageTime(0.5, 1.0, 0.5)]
    assert slowest(stages) == 6.0
    assert step(stages, 10, "1f1b") == pytest.approx(10 * 6.0 + 3.0 + 1.5)


def test_one_stage_has_no_bubble() -> None:
    for schedule in ("1f1b", "interleaved", "zero_bubble"):
        assert bubble(EQUAL[:1], schedule) == 0
