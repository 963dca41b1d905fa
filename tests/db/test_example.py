"""The ready example: recorded once, brought in once, with its series, values and environment."""

from __future__ import annotations

import datetime
import pathlib

import pytest

from db import example
from db.engine import Store, open_store
from db.records import JobState, LogLine, MetricPoint, NewResult
from planner import load

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
