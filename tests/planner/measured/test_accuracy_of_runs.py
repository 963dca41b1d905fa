"""The page of errors is what the code says, and its tables count what is there."""

from __future__ import annotations

import statistics

import pytest

from planner.measured import training_rows
from planner.measured.predicted import memory_of, time_of
from scripts.accuracy import PAGE, main, page, table


def test_the_page_is_what_would_be_written() -> None:
    assert main(["--check"]) == 0, "run `python -m scripts.accuracy`"


def test_the_page_s_table_of_b200_is_its_22_rows() -> None:
    readings = [time_of(row) for row in training_rows() if row.id.startswith("training_b200")]
    errors = [abs(reading.error) for reading in readings if reading is not None and reading.error is not None]
    line = f"| all | 22 | {100 * statistics.median(errors):.1f}% | {100 * statistics.fmean(errors):.1f}% |"
    assert line in PAGE.read_text()


def test_errors_are_of_predictions_over_measurements() -> None:
    row = next(row for row in training_rows() if row.id == "training_b200.csv:2")
    reading = memory_of(row)
    assert reading is not None
    assert reading.predicted is not None
    assert reading.measured == round(66.55 * 2**30)
    assert reading.error == pytest.approx(reading.predicted / reading.measured - 1)
    lines = list(table([reading], "rows", lambda row: "one"))
    assert lines[2].startswith(f"| one | 1 | {100 * abs(reading.error):.1f}% |")


def test_every_section_stands_on_the_page() -> None:
    text = page()
    for heading in ("Memory of training", "Time of a training step", "Efficiencies", "What is left out"):
        assert f"## {heading}" in text


def test_what_nothing_was_measured_of_has_no_reading() -> None:
    row = next(row for row in training_rows() if row.memory is None)
    assert memory_of(row) is None
    row = next(row for row in training_rows() if row.step_seconds is None)
    assert time_of(row) is None
