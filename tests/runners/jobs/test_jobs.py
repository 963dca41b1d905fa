"""Jobs as they are run: verification is exact for every mixer, prototypes learn, benchmarks say how sure they are."""

from __future__ import annotations

import math
import pathlib
from typing import Any

import pytest

from planner import BenchmarkPlan, PrototypePlan, VerifyPlan, load, parse_spec
from planner.prototype import scale_down
from runners.events import Event, Log, Metric, Result, from_json, to_json
from runners.jobs import benchmark, prototype, verify
from runners.jobs.base import JobContext, JobFailure
from runners.profile import current


@pytest.fixture
def context(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> JobContext:
    return JobContext(tmp_path)


def result_of(events: list[Event]) -> dict[str, Any]:
    """The one result, as it arrives after its way through JSON."""
    for event in events:
        if not isinstance(event, Metric) or math.isfinite(event.value):
            assert from_json(to_json(event)) == event or isinstance(event, Result)
    (result,) = [event for event in events if isinstance(event, Result)]
    read = from_json(to_json(result))
    assert isinstance(read, Result)
    assert {"device", "torch", "python", "date"} <= set(read.environment)
    return dict(read.values)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "gemma-2-2b", "qwen3-30b-a3b", "deepseek-v3", "jamba-v0.1", "mamba2-2.7b"])
def test_exact_predictions_are_exact_for_every_mixer(name: str, context: JobContext) -> None:
    spec = scale_down(load(name), 300_000, sequence_length=48).spec
    rows = result_of(list(verify.run(spec, VerifyPlan(sequence_length=48, context_length=48), context)))["rows"]
    exact = [row for row in rows if row["status"] == "exact"]
    assert len(exact) == 5
    assert [row["error"] for row in exact] == [0] * 5
    (memory,) = [row for row in rows if row["quantity"] == "Peak training memory"]
    assert memory["measured"] > 16 * 300_000 * 0.5  # at least the states of half the budget


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_model_larger_than_this_machine_is_verified(context: JobContext) -> None:
    rows = result_of(list(verify.run(load("llama-3-8b"), VerifyPlan(sequence_length=16), context)))["rows"]
    assert rows[0]["measured"] == 8_030_261_248  # as published


def test_a_measurement_that_fails_leaves_a_row_with_the_reason_and_the_others_stand(
    context: JobContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("the tracker cannot follow this model")

    monkeypatch.setattr(verify, "measure_training_memory", broken)
    spec = scale_down(load("gpt2"), 200_000, sequence_length=16).spec
    rows = result_of(list(verify.run(spec, VerifyPlan(sequence_length=16, context_length=16), context)))["rows"]
    assert [row["error"] for row in rows[:5]] == [0] * 5
    assert rows[5]["measured"] is None
    assert "cannot follow" in rows[5]["how"]


def test_too_long_a_sequence_is_refused_by_field(context: JobContext) -> None:
    with pytest.raises(JobFailure, match="sequence_length"):
        list(verify.run(load("gpt2"), VerifyPlan(sequence_length=2048), context))


@pytest.mark.slow
def test_a_prototype_learns_and_says_how_it_was_made(context: JobContext) -> None:
    plan = PrototypePlan(
        parameter_budget=150_000, steps=25, batch_size=4, sequence_length=64, evaluate_every=12, sample_tokens=20
    )
    events = list(prototype.run(load("tiny-hybrid"), plan, context))
    values = result_of(events)
    losses = [event.value for event in events if isinstance(event, Metric) and event.name == "loss"]
    assert len(losses) == 25
    assert losses[0] == pytest.approx(math.log(256), abs=0.5)  # at first every byte is as likely
    assert losses[-1] < losses[0] - 1
    assert values["parameters"] <= 150_000
    assert values["tokens"] == 25 * 4 * 64
    assert values["rules"]
    assert values["precision_reason"] == current().why_fastest
    assert len(values["samples"]) == 3
    assert values["bits_per_byte"] < 8
    errors = {row["quantity"]: row["error"] for row in values["rows"]}
    assert [errors[name] for name in ("Parameters", "FLOPs, forward", "FLOPs, training step")] == [0, 0, 0]
    assert abs(errors["Peak training memory"]) < 0.06
    assert (context.directory / "checkpoint" / "model.safetensors").exists()


@pytest.mark.slow
def test_a_prototype_resumes_from_its_checkpoint(context: JobContext) -> None:
    plan = PrototypePlan(
        parameter_budget=60_000, steps=6, batch_size=2, sequence_length=32, checkpoint_every=2, sample_tokens=0
    )
    events = prototype.run(load("gpt2"), plan, context)
    for event in events:
        if isinstance(event, Metric) and event.name == "loss" and event.step == 3:
            break
    events.close()  # type: ignore[attr-defined]
    second = list(prototype.run(load("gpt2"), plan, JobContext(context.directory, attempt=2)))
    assert Log("resumed at step 2") in second
    assert [e.step for e in second if isinstance(e, Metric) and e.name == "loss"] == [2, 3, 4, 5]


@pytest.mark.slow
def test_a_benchmark_gives_medians_with_intervals(context: JobContext) -> None:
    plan = BenchmarkPlan(parameter_budget=100_000, sequence_length=32, decode_tokens=2, max_repetitions=15)
    values = result_of(list(benchmark.run(load("tiny-hybrid"), plan, context)))
    # The plan leaves the precision to what was measured on this machine, and the result says what that was.
    assert values["precision"] == current().fastest_precision
    assert "GFLOP/s in fp32" in values["precision_reason"]
    timings = values["timings"]
    assert set(timings) == {"prefill", "decode", "training"}
    for timing in timings.values():
        assert 0 < timing["low_seconds"] <= timing["median_seconds"] <= timing["high_seconds"]
        assert timing["repetitions"] >= 10


def test_what_does_not_fit_is_refused_before_it_is_built(context: JobContext) -> None:
    with pytest.raises(JobFailure, match="parameter_budget"):
        list(benchmark.run(load("llama-3.1-70b"), BenchmarkPlan(parameter_budget=None), context))


def test_a_bad_text_source_is_refused_by_field(context: JobContext) -> None:
    spec = parse_spec(load("tiny-hybrid").model_dump(mode="json"))
    with pytest.raises(JobFailure, match="data:"):
        list(prototype.run(spec, PrototypePlan(data="/nowhere/at/all"), context))
