"""The ready example: recorded once, brought in once, with its series, values and environment."""

from __future__ import annotations

import datetime
import json
import pathlib

import pytest

from db import example
from db.engine import Store, open_store
from db.records import GeneratedToken, JobState, LogLine, MetricPoint, NewResult
from planner import load
from runners.engines.client import PLANS

NOW = datetime.datetime(2026, 11, 24, tzinfo=datetime.UTC)


@pytest.mark.xdist_group("store")
def test_what_was_recorded_is_brought_in_once(
    store: Store, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(example, "RECORDED", tmp_path / "example.json")
    assert not example.available()
    spec = load("tiny-hybrid").model_dump(mode="json")
    with open_store(f"sqlite:///{tmp_path}/source.sqlite") as source:
        revision = source.designs.create("Tiny hybrid", spec).latest
        job = source.jobs.begin("prototype", revision.id, {"seed": 1}, "me", name="first")
        found = NewResult("prototype", {"bits_per_byte": 2.5}, {"device": "a processor", "date": "2026-11-24"})
        points = [MetricPoint("loss", step, 5.0 - step) for step in range(3)]
        source.jobs.append(job.id, job.attempt, [*points, LogLine(1, "hello", "info", NOW), found])
        source.jobs.finish(job.id, job.attempt, JobState.SUCCEEDED)
        example.record(source, [job.id])
    assert example.available()

    first = example.import_example(store)
    assert example.import_example(store) == first
    (result,) = store.results.list()
    assert (result.name, result.values) == ("first", {"bits_per_byte": 2.5})
    assert result.environment["device"] == "a processor"
    assert [point.value for point in store.jobs.metrics(result.job_id, ["loss"])] == [5.0, 4.0, 3.0]
    assert "recorded" in store.jobs.logs(result.job_id)[0].message
    assert store.designs.revision(first[0]).content_hash == revision.content_hash


@pytest.mark.xdist_group("store")
def test_jobs_that_name_others_name_them_as_they_are_called_here(
    store: Store, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(example, "RECORDED", tmp_path / "example.json")
    with open_store(f"sqlite:///{tmp_path}/source.sqlite") as source:
        revision = source.designs.create("Tiny hybrid", load("tiny-hybrid").model_dump(mode="json")).latest
        trained = source.jobs.begin("prototype", revision.id, {}, "me", name="trained")
        source.jobs.append(trained.id, trained.attempt, [NewResult("prototype", {}, {})])
        source.jobs.finish(trained.id, trained.attempt, JobState.SUCCEEDED)
        wrote = source.jobs.begin("generate", revision.id, {"prototypes": [trained.id]}, "me", name="wrote")
        token = GeneratedToken(0, 0, {"piece": "a", "probability": 0.5})
        values = {"texts": [{"prototype": trained.id, "text": "a"}]}
        source.jobs.append(wrote.id, wrote.attempt, [token, NewResult("generate", values, {})])
        source.jobs.finish(wrote.id, wrote.attempt, JobState.SUCCEEDED)
        example.record(source, [trained.id, wrote.id])

    example.import_example(store)
    (prototype,), (text,) = store.results.list(kind="prototype"), store.results.list(kind="generate")
    assert prototype.job_id != trained.id
    assert store.jobs.get(text.job_id).plan["prototypes"] == [prototype.job_id]
    assert text.values["texts"][0]["prototype"] == prototype.job_id
    assert store.jobs.tokens(text.job_id) == (token,)


def test_the_ready_example_has_a_result_of_every_kind_of_job() -> None:
    entries = json.loads(example.RECORDED.read_text(encoding="utf-8"))
    assert {entry["kind"] for entry in entries} == set(PLANS)
    for entry in entries:  # what was measured says where and when
        assert entry["environment"]["device"], entry["name"]
        assert entry["environment"]["date"] > "2026-", entry["name"]
