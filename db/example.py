"""The ready example: jobs that really ran and that ``python -m scripts.example --record`` wrote down, for any store.

Each carries the design, the environment and the date that it was measured with; its log says that it ran elsewhere.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from db.engine import Store
from db.records import GeneratedToken, JobState, LogLine, MetricPoint, NewResult

RECORDED = pathlib.Path(__file__).resolve().parent.parent / "assets" / "example.json"


def available() -> bool:
    """Whether a recorded example is there."""
    return RECORDED.exists()


def record(store: Store, job_ids: list[str]) -> None:
    """Write the jobs, with their designs, series and results, to the file that :func:`import_example` reads."""
    entries: list[dict[str, Any]] = []
    for job_id in job_ids:
        job = store.jobs.get(job_id)
        revision = store.designs.revision(job.revision_id)
        series: dict[str, list[list[float]]] = {}
        for point in store.jobs.metrics(job_id):
            series.setdefault(point.name, []).append([point.step, float(f"{point.value:.6g}")])
        (result,) = store.results.list(job_id=job_id)
        entries.append(
            {
                "job": job_id,
                "kind": job.kind,
                "name": job.name,
                "plan": dict(job.plan),
                "spec": {**revision.spec, "name": revision.name},
                "metrics": series,
                "tokens": [dataclasses.asdict(token) for token in store.jobs.tokens(job_id)],
                "values": dict(result.values),
                "environment": dict(result.environment),
            }
        )
    RECORDED.write_text(json.dumps(entries, separators=(",", ":")) + "\n", encoding="utf-8")


def import_example(store: Store) -> list[int]:
    """Bring the recorded jobs in, once; the revisions to compare, which have prototypes, the baseline's first."""
    revisions: list[int] = []
    jobs: dict[str, str] = {}  # a job has another id here than where it ran; some plans and results name jobs
    for entry in json.loads(RECORDED.read_text(encoding="utf-8")):
        spec = entry["spec"]
        designs = store.designs.list()
        known = next((d.latest for d in designs if d.name == spec["name"] and d.latest.spec == spec), None)
        revision = known or store.designs.create(spec["name"], spec).latest
        if entry["kind"] == "prototype" and revision.id not in revisions:
            revisions.append(revision.id)
        present = store.results.list(revision_id=revision.id, kind=entry["kind"])
        there = next((result for result in present if result.name == entry["name"]), None)
        if there is not None:
            jobs[entry["job"]] = there.job_id
            continue
        plan, values = _renamed(entry["plan"], jobs), _renamed(entry["values"], jobs)
        job = store.jobs.begin(entry["kind"], revision.id, plan, "recorded", name=entry["name"])
        jobs[entry["job"]] = job.id
        day, _, moment = entry["environment"].get("date", "an unknown day").partition("T")
        said = f"measured elsewhere on {day}{f' at {moment[:5]} UTC' if moment else ''}, recorded and imported"
        points = [
            MetricPoint(name, int(step), value) for name, series in entry["metrics"].items() for step, value in series
        ]
        tokens = [GeneratedToken(**token) for token in entry["tokens"]]
        log = LogLine(1, said, "info", datetime.datetime.now(datetime.UTC))
        store.jobs.append(
            job.id, job.attempt, [log, *points, *tokens, NewResult(entry["kind"], values, entry["environment"])]
        )
        store.jobs.finish(job.id, job.attempt, JobState.SUCCEEDED)
    return revisions


def _renamed(value: Any, jobs: Mapping[str, str]) -> Any:
    """Plain data with the ids that jobs had replaced by those that they have."""
    if isinstance(value, dict):
        return {name: _renamed(entry, jobs) for name, entry in value.items()}
    if isinstance(value, list):
        return [_renamed(entry, jobs) for entry in value]
    return jobs.get(value, value) if isinstance(value, str) else value
