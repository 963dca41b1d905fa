"""Pairs of predicted and measured: their errors, groups and neighbours, by hand."""

from __future__ import annotations

import datetime
import math

import pytest

from planner import load
from planner.explain import QUANTITIES, TIME_QUANTITIES
from planner.ledger import (
    BY,
    COUNTED,
    MEASURED_AS,
    ErrorSummary,
    Pair,
    exact_quantities,
    kinds_of_spec,
    nearest,
    nearest_count,
    nearest_error,
    over_time,
    published_pairs,
    summarise,
    unpredicted,
)
from planner.measured import training_rows
from planner.measured.rows import day_of
from planner.sensitivity import OUTPUTS


def pair(predicted: float, measured: float, **changed: object) -> Pair:
    fields: dict[str, object] = {
        "quantity": "Peak training memory",
        "unit": "bytes",
        "device": "H100",
        "kinds": frozenset({"attention", "mlp"}),
        "parameters": 7_000_000_000,
        "origin": "own",
        "label": "a run",
        "source": "job-1",
        "when": datetime.date(2026, 11, 26),
    }
    return Pair(predicted=predicted, measured=measured, **{**fields, **changed})  # type: ignore[arg-type]


def test_the_error_is_the_predictions_as_a_share_of_what_was_measured() -> None:
    assert pair(110, 100).error == pytest.approx(0.1)
    assert pair(90, 100).error == pytest.approx(-0.1)
    assert pair(0, 0).error == 0
    assert pair(1, 0).error == math.inf


def test_a_group_is_told_by_its_median_its_ninth_decile_and_its_worst() -> None:
    # Errors of +1, −2, +3 … −10 percent: sizes 1 to 10, whose median is 5.5 and whose ninth is 9.
    pairs = [pair(100 + (number if number % 2 else -number), 100) for number in range(1, 11)]
    found = ErrorSummary.of("all", pairs)
    assert (found.count, found.median, found.ninth_decile, found.worst) == pytest.approx((10, 0.055, 0.09, 0.1))
    assert found.bias == pytest.approx(-0.005)  # between −2 and +1


def test_groups_come_with_the_worst_first_and_a_pair_counts_for_each_of_its_components() -> None:
    pairs = [
        pair(110, 100, kinds=frozenset({"attention", "moe"})),
        pair(101, 100, kinds=frozenset({"attention", "mlp"})),
        pair(140, 100, device="T4", kinds=frozenset({"mamba2"}), when=datetime.date(2026, 10, 1)),
    ]
    assert [(each.name, each.count) for each in summarise(pairs, BY["component"])] == [
        ("mamba2", 1), ("moe", 1), ("attention", 2), ("mlp", 1),
    ]  # fmt: skip
    assert [each.name for each in summarise(pairs, BY["device"])] == ["T4", "H100"]
    assert {each.name for each in summarise(pairs, BY["month"])} == {"2026-10", "2026-11"}


def test_the_nearest_pairs_share_the_device_then_the_components_then_the_size() -> None:
    spec = load("llama-2-7b")
    same = pair(1, 1, label="same")
    smaller = pair(1, 1, label="smaller", parameters=70_000_000)  # two powers of ten: a step
    other = pair(1, 1, label="other components", kinds=frozenset({"mamba2"}))
    elsewhere = pair(1, 1, label="elsewhere", device="A100")
    far = pair(1, 1, label="far", device="A100", kinds=frozenset({"mamba2"}), parameters=70_000_000)
    time = pair(1, 1, label="another quantity", quantity="Time of a training step")
    found = nearest([far, time, other, smaller, elsewhere, same], spec, "Peak training memory", "h100", count=5)
    assert found[0].label == "same"
    assert {each.label for each in found[1:4]} == {"smaller", "other components", "elsewhere"}
    assert found[4].label == "far"


def test_published_runs_are_predicted_and_what_is_not_is_counted() -> None:
    readings = sum((row.memory is not None) + (row.step_seconds is not None) for row in training_rows())
    found = published_pairs()
    of_training = [each for each in found if each.quantity in ("Peak training memory", "Time of a training step")]
    assert len(of_training) + sum(unpredicted().values()) == readings
    served = {each.quantity for each in found} - {each.quantity for each in of_training}
    assert served == {"Memory of serving", "Time between tokens", "Time of an answer", "Time of a prompt"}
    assert all(each.source and each.measured > 0 and each.predicted > 0 for each in found)


def test_the_kinds_of_a_model_are_those_of_its_mixers() -> None:
    assert kinds_of_spec(load("jamba-v0.1")) == {"attention", "mamba1", "mlp", "moe"}


def test_near_pairs_have_every_component_and_a_size_within_ten_times() -> None:
    spec = load("llama-2-7b")  # attention and MLPs, 6.7 B
    alike = pair(102, 100)
    on_a100 = pair(90, 100, device="A100", parameters=60_000_000_000)
    too_large = pair(200, 100, parameters=80_000_000_000)
    without_mlp = pair(200, 100, kinds=frozenset({"attention"}))
    found = nearest_error([too_large, on_a100, without_mlp, alike], spec, "Peak training memory", "H100")
    assert found is not None
    assert found.is_near
    assert (found.summary.count, found.summary.worst) == (2, pytest.approx(0.1))
    assert (found.devices, found.elsewhere) == (("H100", "A100"), 1)
    assert nearest_error([alike], spec, "Time of a training step") is None


def test_a_component_that_no_run_has_is_named_and_the_least_unlike_are_told() -> None:
    spec = load("jamba-v0.1")  # attention, mamba1, mlp, moe
    found = nearest_error([pair(120, 100), pair(110, 100)], spec, "Peak training memory")
    assert found is not None
    assert not found.is_near
    assert found.missing == ("mamba1", "moe")
    assert found.summary.median == pytest.approx(0.15)


def test_the_known_model_beside_a_count_is_the_design_itself_where_it_is_one() -> None:
    found = nearest_count(load("llama-2-7b"))
    assert (found.preset.id, found.counted, found.is_alike) == ("llama-2-7b", 6_738_415_616, True)


def test_every_quantity_that_opens_or_swings_is_held_by_a_measured_one_or_counted() -> None:
    # What is neither: rules and what belongs to a whole that is measured.
    neither = {"flops_6n", "chinchilla_tokens", "allocated_cache"}
    assert {*QUANTITIES, *TIME_QUANTITIES, "step_time", *OUTPUTS} - {*MEASURED_AS, *COUNTED} == neither


@pytest.mark.parametrize(
    ("as_of", "day"),
    [
        ("2023-08-12", datetime.date(2023, 8, 12)),
        ("HEAD d98e8a64 2026-08-22; file 93ebf8d72f 2026-08-19", datetime.date(2026, 8, 19)),
        ("HEAD 9e64edec; measured 2022-02-17..28", datetime.date(2022, 2, 17)),
        ("HEAD 06c957a 2025-09-24 (data Nov 2024)", datetime.date(2024, 11, 1)),
        ("2025-01 (8259a38e2)", datetime.date(2025, 1, 1)),
        ("HEAD da07facd 2025-12-09 (table ~2023)", None),  # of a year that no day is known of
        ("2025", None),
        ("tag v25.04.02", None),
        ("stored page", None),
        ("", None),
    ],
)
def test_a_published_run_has_the_earliest_day_that_its_source_gives(as_of: str, day: datetime.date | None) -> None:
    assert day_of(as_of) == day


def test_over_time_each_quarter_has_the_summary_of_its_own_pairs() -> None:
    days = (datetime.date(2025, 12, 31), datetime.date(2026, 1, 1), datetime.date(2026, 3, 31))
    found = over_time([pair(100 + 10 * (place + 1), 100, when=day) for place, day in enumerate(days)])
    assert [(each.start, each.end, each.summary.count) for each in found] == [
        (datetime.date(2025, 10, 1), datetime.date(2025, 12, 31), 1),
        (datetime.date(2026, 1, 1), datetime.date(2026, 3, 31), 2),
    ]
    assert [each.summary.median for each in found] == pytest.approx([0.1, 0.25])
    assert over_time([pair(1, 1, when=None)]) == ()


def test_a_quantity_is_exact_where_every_pair_of_it_is() -> None:
    pairs = [pair(5, 5, quantity="Cache"), pair(7, 7, quantity="Cache"), pair(1, 1), pair(1.1, 1)]
    assert exact_quantities(pairs) == {"Cache": 2}
