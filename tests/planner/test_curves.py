"""Curves over the length: each point is what the planner says of that length, and the crossing is where it is said."""

from __future__ import annotations

import pytest

from planner import crossover, flops, load
from planner.curves import crossover_curve, flops_curve


def test_a_point_is_the_pass_of_that_length_over_its_tokens() -> None:
    spec = load("gpt2")
    curve = flops_curve(spec, (1, 64, 512))
    for index, length in enumerate(curve.lengths):
        counted = flops(spec, length)
        assert curve.forward[index] * length == pytest.approx(counted.total)
        assert curve.needed[index] * length == pytest.approx(counted.needed_total)
        assert curve.training[index] == pytest.approx(3 * curve.forward[index])
    assert curve.needed[2] < curve.forward[2]


def test_the_curves_cross_where_the_crossover_is() -> None:
    spec = load("gpt2")
    found = crossover(spec)
    assert found.counted_tokens == 4 * 768
    assert found.needed_tokens == 8 * 768 - 1
    curve = crossover_curve(spec, (3071, 3072, 6142, 6143))
    assert curve.channel == 12 * 16 * 768**2
    assert curve.attention_counted[0] < curve.channel == curve.attention_counted[1]
    assert curve.attention_needed[2] < curve.channel <= curve.attention_needed[3]
