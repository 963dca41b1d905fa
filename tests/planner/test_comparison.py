"""Differences between designs: the verdict on measured values, and rows against a baseline."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from planner.comparison import (
    ComparisonSettings,
    Spread,
    compare_specs,
    difference,
    held_equal,
    row_of,
)
from planner.spec import ArchitectureSpec, parse_spec


def llama(num_key_value_heads: int) -> ArchitectureSpec:
    attention = {"kind": "attention", "num_attention_heads": 32, "num_key_value_heads": num_key_value_heads}
    layer = {
        "sequence_mixer": attention | {"head_dim": 128},
        "channel_mixer": {"kind": "mlp", "intermediate_size": 11008},
    }
    group = {"repeats": 32, "layers": [layer]}
    return parse_spec({"vocab_size": 32000, "hidden_size": 4096, "layer_groups": [group]})


@given(
    st.lists(st.floats(-10, 10), min_size=3, max_size=6).filter(lambda values: max(values) - min(values) > 1e-3),
    st.lists(st.floats(-10, 10), min_size=3, max_size=6).filter(lambda values: max(values) - min(values) > 1e-3),
)
def test_interval_is_welchs(first: list[float], second: list[float]) -> None:
    """SciPy's own Welch test gives the same 95% interval."""
    found = difference(Spread(tuple(first)), Spread(tuple(second)))
    expected = stats.ttest_ind(second, first, equal_var=False).confidence_interval(0.95)
    assert found.low == pytest.approx(expected.low, rel=1e-6, abs=1e-9)
    assert found.high == pytest.approx(expected.high, rel=1e-6, abs=1e-9)


def test_two_seeds_give_no_verdict_however_far_apart() -> None:
    assert difference(Spread((1.0, 1.1)), Spread((5.0, 5.1, 5.2))).verdict == "too few seeds"


@pytest.mark.parametrize(
    "other, verdict",
    [((2.0, 2.01, 2.02), "higher"), ((0.5, 0.51, 0.52), "lower"), ((0.9, 1.05, 1.1), "within the spread")],
)
def test_verdict_follows_the_spread_of_the_seeds(other: tuple[float, ...], verdict: str) -> None:
    assert difference(Spread((1.0, 1.02, 0.98)), Spread(other)).verdict == verdict


def test_identical_measurements_are_no_difference() -> None:
    assert difference(Spread((1.0, 1.0, 1.0)), Spread((1.0, 1.0, 1.0))).verdict == "within the spread"


def test_changes_are_against_the_chosen_baseline() -> None:
    row = row_of("Parameters", "size", "count", "exact", [100, 150, None], baseline=1)
    assert row.absolute == (-50, 0, None)
    assert row.relative == (pytest.approx(-1 / 3), 0, None)


def test_fewer_kv_heads_shrink_cache_and_parameters_by_hand_calculation() -> None:
    """MHA against 8 KV heads: 2 · h · d · 24 parameters fewer a layer, and a quarter of the cache."""
    rows = {row.quantity: row for row in compare_specs([llama(32), llama(8)], ComparisonSettings())}
    assert rows["Parameters"].absolute[1] == -32 * 2 * 4096 * 128 * 24
    assert rows["Cache at 32,768"].values == (16 * 2**30, 4 * 2**30)
    assert rows["Cache at 131,072"].relative[1] == -0.75
    assert not rows["Layers"].differs


def test_what_was_held_equal_is_said_with_its_distance() -> None:
    budget, tokens, rule = held_equal(
        {"parameters": [1_000_000, 990_000], "tokens": [10, 20], "learning-rate rule": ["by width", "by width"]}
    )
    assert (budget.equal, budget.detail) == (True, "1.0% apart")
    assert (tokens.equal, tokens.detail) == (False, "50.0% apart")
    assert rule.equal
    assert not held_equal({"memory": [1.0, None]})[0].equal
