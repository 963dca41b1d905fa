"""Calibration of the machine that runs the tests: what is stored and what is held against it. No speed is asserted."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
import pytest

from planner.calibration import OPTIONS, options_of, stored_calibration
from planner.plans import BenchmarkPlan, CalibratePlan
from planner.presets import preset
from runners.events import Result
from runners.jobs import benchmark, calibrate
from runners.jobs.base import JobContext
from runners.training import calibration
from runners.training.calibration import clocks, layers, operators


@pytest.fixture
def quick(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A data directory of its own, and few and small measurements."""
    monkeypatch.setenv("PLUMBLINE_DATA_DIR", str(tmp_path))
    few = dataclasses.replace(
        operators.CPU, rows=(1, 64), sizes=(32, 256), widths=(64,), lengths=(16,), channels=(8,), copies=(2**16,)
    )
    monkeypatch.setattr(operators, "CPU", few)
    for name, value in (("SECONDS_EACH", 0.0), ("TURNS", 1), ("TURN_SECONDS", 0.0), ("WARM_SECONDS", 0.0)):
        monkeypatch.setattr(clocks, name, value)
    monkeypatch.setattr(calibration, "ROUNDS", 2)
    measured = calibration.measure
    monkeypatch.setattr(calibrate, "measure", lambda *of: measured(*of, kinds=("attention", "mlp")))
    return tmp_path


@pytest.mark.slow
def test_a_calibration_is_stored_and_held_against_models(quick: pathlib.Path) -> None:
    spec = preset("llama-2-7b").spec
    plan = CalibratePlan(
        models=("llama-2-7b", "mamba2-2.7b"), parameter_budget=60_000, batch_size=1, sequence_length=16,
        precisions=("fp32",),
    )  # fmt: skip
    (result,) = [event for event in calibrate.run(spec, plan, JobContext(quick)) if isinstance(event, Result)]
    rows = result.values["rows"]
    # Of the two models one has components that were measured; each of its phases has a row.
    assert [row["label"] for row in rows] == ["llama-2-7b"] * 3
    assert all(row["predicted"] > 0 and row["measured"] > 0 for row in rows)
    stored = stored_calibration()
    assert stored is not None
    assert set(stored.precisions["fp32"].phases) == {"prefill", "decode", "training"}
    assert set(stored.precisions["fp32"].phases["decode"].kinds) == {"attention", "mlp"}
    assert all(row["profile"] == stored.name for row in rows)
    timed = BenchmarkPlan(
        batch_size=1, sequence_length=16, decode_tokens=2, parameter_budget=60_000, max_repetitions=10,
        relative_interval=0.9, phases=("prefill",), precision="fp32",
    )  # fmt: skip
    (found,) = [event for event in benchmark.run(spec, timed, JobContext(quick)) if isinstance(event, Result)]
    (row,) = found.values["rows"]
    assert row["profile"] == stored.name
    assert row["measured"] == found.values["timings"]["prefill"]["median_seconds"]


def test_without_a_calibration_a_benchmark_predicts_nothing(quick: pathlib.Path) -> None:
    plan = BenchmarkPlan(
        batch_size=1, sequence_length=16, parameter_budget=60_000, max_repetitions=10, relative_interval=0.9,
        phases=("prefill",), precision="fp32",
    )  # fmt: skip
    events = benchmark.run(preset("llama-2-7b").spec, plan, JobContext(quick))
    (found,) = [event for event in events if isinstance(event, Result)]
    assert found.values["rows"] == []


def test_when_the_rounds_are_over_their_medians_are_told_and_nothing_runs() -> None:
    ran: list[int] = []
    times = iter([1.0, 10.0, 3.0, 30.0, 2.0, 50.0])

    def clock(call: clocks.Call, device: str, host: float) -> float:
        call()
        return next(times)

    def make() -> list[clocks.Call]:
        return [lambda: ran.append(0), lambda: ran.append(1)]

    watch = clocks.Stopwatch("cpu")
    with pytest.MonkeyPatch.context() as patched:
        for name, value in (("TURNS", 1), ("TURN_SECONDS", 0.0), ("WARM_SECONDS", 0.0)):
            patched.setattr(clocks, name, value)
        for expected in ([1.0, 10.0], [3.0, 30.0], [2.0, 50.0]):
            watch.start()
            assert watch.in_turns("both", make, clock) == expected
            assert watch.in_turns("both", make, clock) == expected  # once a round
    watch.stop()
    runs = len(ran)
    assert watch.in_turns("both", make, clock) == [2.0, 30.0]
    assert len(ran) == runs


def test_an_options_example_differs_in_the_option_alone() -> None:
    known = dict(layers.examples())
    for name in OPTIONS:
        found = [
            [*options_of(layer), *options_of(getattr(layer, layers._slot(layer)))]
            for _, layer in layers.with_option(name, known)
        ]
        assert found == [[name], []]


def test_what_is_left_is_told_apart_into_bytes_and_flops() -> None:
    # Three seconds a byte and half a second a FLOP.
    terms = [(10.0, 100.0), (10.0, 400.0)]
    assert layers._shares(terms, [30 + 50, 30 + 200]) == pytest.approx([3.0, 0.5])
    # What would need a negative share has none.
    per_byte, per_flop = layers._shares(terms, [90.0, 30.0])
    assert per_flop == 0
    # Each counts alike: ten bytes a second over as much again, so that 10 b / 90 and 10 b / 30 are as near 1 as can be.
    assert np.isclose(per_byte, (10 / 90 + 10 / 30) / ((10 / 90) ** 2 + (10 / 30) ** 2))
