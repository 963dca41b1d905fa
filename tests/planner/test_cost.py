"""Three ways of having tokens: by hand, by trying every demand, and what is refused."""

from __future__ import annotations

import datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner import UnsupportedPlan, parse_plan
from planner.cost import CostComparison, CostPlan, Crossing, Way, compare_costs, cost_curves, tables

PLAN = {
    "tokens_per_second": 100.0,
    "tokens_per_day": 1_000_000,
    "device": "rtx4090",
    "devices": 2,
    "device_usd": 1500.0,
    "host_usd": 1000.0,
    "lifetime_years": 4.0,
    "residual_share": 0.25,
    "operations_share_a_year": 0.1,
    "device_watts": 400.0,
    "host_watts": 100.0,
    "idle_power_share": 0.1,
    "power_usage_effectiveness": 1.5,
    "electricity_usd_per_kwh": 0.2,
    "peak_utilisation": 0.5,
    "rented_usd_per_device_hour": 0.5,
    "cloud_hours_a_day": 12.0,
    "input_tokens_per_output_token": 4.0,
    "input_usd_per_million": 0.5,
    "output_usd_per_million": 2.0,
}


def compared(**changed: object) -> CostComparison:
    return compare_costs(parse_plan(CostPlan, {**PLAN, **changed}))


def way(comparison: CostComparison, name: str) -> Way:
    return next(each for each in comparison.ways if each.name == name)


def crossing(comparison: CostComparison, cheaper: str, dearer: str) -> Crossing:
    return next(each for each in comparison.crossings if (each.cheaper, each.dearer) == (cheaper, dearer))


def test_a_day_costs_what_a_hand_calculation_says() -> None:
    found = compared()
    own = way(found, "own")
    # A machine of 4,000 dollars: 3,000 wear off in 1,461 days, a tenth of it is upkeep a year.
    wear, upkeep = 3000 / 1461, 400 / 365.25
    # 2 × 40 W and 100 W wait all day: 4.32 kWh, half as much again for the building, 20 cents each.
    waiting = 0.180 * 24 * 1.5 * 0.2
    assert [term.usd_per_day for term in own.fixed_terms] == pytest.approx([wear, upkeep, waiting])
    # 100 tokens a second for half of the day: 4.32 million. The work takes 720 W for 10,000 seconds.
    assert own.tokens_per_machine_day == pytest.approx(4_320_000)
    working = 0.720 * 10_000 / 3600 * 1.5 * 0.2
    assert own.usd_per_day(1_000_000) == pytest.approx(wear + upkeep + waiting + working)
    assert own.usd_per_million(1_000_000) == pytest.approx(wear + upkeep + waiting + working)
    # A second machine from 4.32 million on.
    assert own.usd_per_day(5_000_000) == pytest.approx(2 * (wear + upkeep + waiting) + 5 * working)
    # Two devices at half a dollar for twelve hours; half of those twelve busy: 2.16 million tokens.
    rented = way(found, "rented")
    assert rented.usd_per_day(1_000_000) == pytest.approx(12.0)
    assert rented.usd_per_day(2_200_000) == pytest.approx(24.0)
    # A million written for two dollars, four million read for it for two more.
    assert way(found, "by the token").usd_per_day(1_000_000) == pytest.approx(4.0)


def test_where_owning_becomes_cheaper_than_buying_tokens() -> None:
    found = compared()
    fixed = 3000 / 1461 + 400 / 365.25 + 0.180 * 24 * 0.3
    a_token = 0.720 / 100 / 3600 * 0.3
    # One machine is enough at the crossing, so the line is met where fixed + a t = 4e-6 t; and two machines at once
    # still cost less than the 17.28 dollars of 4.32 million tokens.
    expected = fixed / (4e-6 - a_token)
    both = crossing(found, "own", "by the token")
    assert both.first == pytest.approx(expected)
    assert both.always == pytest.approx(expected)
    # Tokens are cheaper from nothing on, and in the end they are not.
    back = crossing(found, "by the token", "own")
    assert back.first == 0
    assert back.always is None


@settings(max_examples=60, deadline=None)
@given(
    usd=st.floats(0, 20_000), rate=st.floats(1, 5000), price=st.floats(0.01, 30), rent=st.floats(0.05, 12),
    hours=st.sampled_from([6.0, 8.0, 24.0]), watts=st.floats(10, 1500),
)  # fmt: skip
def test_the_crossings_are_those_that_trying_finds(
    usd: float, rate: float, price: float, rent: float, hours: float, watts: float
) -> None:
    found = compared(
        device_usd=usd, tokens_per_second=rate, output_usd_per_million=price, input_usd_per_million=price / 4,
        rented_usd_per_device_hour=rent, cloud_hours_a_day=hours, device_watts=watts,
    )  # fmt: skip
    machine = way(found, "own").tokens_per_machine_day
    # Off the steps themselves, where rounding decides how many machines there are.
    tried = np.concatenate([np.geomspace(machine / 1e6, machine, 4001), machine * np.linspace(1, 200, 9973)]) * 1.000003
    curves = cost_curves(found, tried)
    for each in found.crossings:
        below = curves[each.cheaper] <= curves[each.dearer] * (1 - 1e-9)
        above = curves[each.cheaper] > curves[each.dearer] * (1 + 1e-9)
        if each.first is None:
            assert not below.any()
        else:
            assert not below[tried < each.first * (1 - 1e-6)].any()
            after = tried[tried >= each.first * (1 - 1e-6)]
            if after.size and each.first > 0:
                at = each.first * (1 + 1e-9)
                costs = cost_curves(found, np.array([at]))
                assert costs[each.cheaper][0] <= costs[each.dearer][0] * (1 + 1e-6)
        if each.always is not None:
            assert not above[tried > each.always * (1 + 1e-6)].any()


def test_the_cheapest_way_is_that_of_the_demand() -> None:
    for demand, name in ((1_000, "by the token"), (4_000_000, "own")):
        best = compared(tokens_per_day=demand).cheapest()
        assert best is not None
        assert best.name == name


def test_a_way_whose_price_is_not_known_is_missing_and_says_what_to_enter() -> None:
    found = compared(
        device="h200", device_usd=None, rented_usd_per_device_hour=None, input_usd_per_million=None,
        output_usd_per_million=None,
    )  # fmt: skip
    assert [each.name for each in found.ways] == ["rented"]
    assert any("device_usd" in reason for reason in found.missing)
    assert any("output_usd_per_million" in reason for reason in found.missing)


@pytest.mark.parametrize(
    "changed, path",
    [
        ({"device": "h100s"}, "hardware"),
        ({"output_usd_per_million": None}, "output_usd_per_million"),
        ({"tokens_per_second": 0}, "tokens_per_second"),
        ({"tokens_per_day": float("nan")}, "tokens_per_day"),
        ({"peak_utilisation": 1.5}, "peak_utilisation"),
        ({"lifetime_years": 0}, "lifetime_years"),
        ({"devices": 0}, "devices"),
        ({"residual_share": 1}, "residual_share"),
        ({"colour": 1}, "colour"),
    ],
)
def test_wrong_plans_are_refused_at_their_field(changed: dict[str, object], path: str) -> None:
    with pytest.raises(UnsupportedPlan) as caught:
        compared(**changed)
    assert caught.value.path == path
    assert caught.value.remedy


def test_every_default_has_a_source_and_a_date() -> None:
    known = tables()
    fields = set(CostPlan.model_fields)
    assert set(known.assumptions) <= fields
    for row in (*known.assumptions.values(), *known.purchases.values(), *known.apis.values()):
        assert row.source
        assert datetime.date(2018, 1, 1) < row.as_of <= datetime.date(2026, 12, 31)
    plan = CostPlan(tokens_per_second=1.0)
    for name, assumption in known.assumptions.items():
        assert getattr(plan, name) == assumption.value
