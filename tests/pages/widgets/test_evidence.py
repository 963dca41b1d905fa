"""What a decision may cite of a stored result: measured numbers, each under a name that can be read."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from db.records import Result
from pages.widgets import evidence


def result(values: dict[str, Any]) -> Result:
    now = datetime.datetime(2026, 11, 26, tzinfo=datetime.UTC)
    return Result(
        id=1, job_id="job", revision_id=1, kind="any", name="any", values=values, environment={}, archived=False,
        created_at=now,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({"timings": {"prefill": {"median_seconds": 0.1}}}, ["timings prefill median seconds"]),
        (
            {"texts": [{"prototype": "ab", "name": "Small", "tokens_per_second": 9.0}, {"name": "Large", "tokens": 4}]},
            ["Small tokens per second", "Large tokens"],
        ),
        ({"stages": [{"stage": "trained", "layers": [{"layer": 3, "idle": 1}]}]}, ["trained layer 3 idle"]),
        ({"placements": [{"placement": "after_residual", "bits_per_byte": 2.0}]}, ["after residual bits per byte"]),
        (
            {"kernels": [{"kernel": "rms_norm", "function": "forward", "sizes": {"channels": 8}, "registers": 32}]},
            ["rms norm forward channels 8 registers"],
        ),
        (
            {"rows": [{"quantity": "Time", "label": "gpt2", "measured": 1.0, "unit": "seconds", "spec": {"a": 1}}] * 2},
            ["measured Time, gpt2", "measured Time, gpt2 (2)"],
        ),
        # What a result was given is none of its findings, and lists of bare numbers have no names.
        ({"spec": {"hidden_size": 8}, "calibration": {"rows": [1, 2]}, "designed": [3], "predicted_count": 4}, []),
    ],
)
def test_each_number_has_a_name_of_its_own(values: dict[str, Any], names: list[str]) -> None:
    assert [number.quantity for number in evidence.of_result(result(values))] == names


def test_a_bare_number_is_read_with_four_digits_and_a_time_with_its_unit() -> None:
    (first, second) = evidence.of_result(result({"ratio": 1.10110517, "seconds": 0.00686}))
    assert evidence.text(first.value, first.unit) == "1.101"
    assert evidence.text(second.value, second.unit) == "6.86 ms"
