"""Ticks of logarithmic axes and labels of the roofline, by hand."""

from __future__ import annotations

import math

import pytest

from pages.widgets.serving_view import log_ticks, roof, tick_text
from planner.serving.times import RooflinePoint


@pytest.mark.parametrize(
    "low, high, expected",
    [
        (1, 1e6, [1, 10, 100, 1e3, 1e4, 1e5, 1e6]),
        (1, 1e10, [1, 100, 1e4, 1e6, 1e8, 1e10]),
        (20, 400, [30, 100, 300]),
        (12, 60, [20, 30, 40, 50, 60]),
        (21, 24, [21, 22, 23, 24]),
    ],
)
def test_ticks_are_few_round_numbers(low: float, high: float, expected: list[float]) -> None:
    assert log_ticks(math.log10(low * 0.999), math.log10(high * 1.001)) == pytest.approx(expected)


@pytest.mark.parametrize(
    "value, text", [(20, "20"), (0.5, "0.5"), (2000, "2k"), (1.5e9, "1.5G"), (3e12, "3T"), (1e15, "1P"), (13, "13")]
)
def test_a_tick_says_its_whole_number(value: float, text: str) -> None:
    assert tick_text(value) == text


def test_operators_that_stand_together_on_the_roofline_share_a_label() -> None:
    def point(name: str, intensity: float, flops: float, seconds: float) -> RooflinePoint:
        return RooflinePoint("decode", name, "attention", intensity, seconds, flops, 2 * flops, "memory")

    # Three within 5% of each other, of which the longest is named first, and one far off.
    points = [point("q", 1.0, 1e12, 1), point("up", 1.01, 1.02e12, 3), point("down", 1.02, 1e12, 2)]
    drawn = roof([*points, point("mixing", 4.0, 9e12, 2)])["data"]
    assert [text for trace in drawn[1:] for text in trace["text"]] == ["up, down and 1 more", "", "", "mixing"]
