"""The ready example: jobs that ``python -m scripts.example --record`` really ran, brought into a store.

Each carries the environment and the date that it was measured in; its log says that it was recorded elsewhere.
"""

from __future__ import annotations

import datetime
import json
import pathlib

from db.engine import Store
from db.records import JobState, LogLine, MetricPoint, NewResult

RECORDED = pathlib.Path(__file__).resolve().parent.parent / "assets" / "example.json"


def available() -> bool:
    """Whether a recorded example is there."""
    return RECORDED.exists()


def record(store: Store, job_ids: list[str]) -> None:
    """Write the jobs, with their designs, series and results, to the file that :func:`import_example` reads."""
    entries = []
    for job_id in job_ids:
        job = store.jobs.get(job_id)
        revision = store.designs.revision(job.revision_id)
        series: dict[str, list[list[float]]] = {}
        for point in store.jobs.metrics(job_id):
            series.setdefault(point.name, []).append([point.step, float(f"{point.value:.6g}")])
        (result,) = store.results.list(job_id=job_id)
        entries.append(
            {
                "kind": job.kind,
                "name": job.name,
                "plan": dict(job.plan),
                "spec": {**revision.spec, "name": revision.name},
                "metrics": series,
                "values": dict(result.values),
                "environment": dict(result.environment),
            }
        )
    RECORDED.write_text(json.dumps(entries, separators=(",", ":")) + "\n", encoding="utf-8")


def import_example(store: Store) -> list[int]:
    """Bring the recorded jobs in, once; the ids of their revisions, the baseline's first."""
    revisions: list[int] = []
    for entry in json.loads(RECORDED.read_text(encoding="utf-8")):
        spec = entry["spec"]
        designs = store.designs.list()
        known = next((d.latest for d in designs if d.name == spec["name"] and d.latest.spec == spec), None)
        revision = known or store.designs.create(spec["name"], spec).latest
        if revision.id not in revisions:
            revisions.append(revision.id)
        present = store.results.list(revision_id=revision.id, kind=entry["kind"])
        if any(result.name == entry["name"] for result in present):
            continue
        job = store.jobs.begin(entry["kind"], revision.id, entry["plan"], "recorded", name=entry["name"])
        measured_at = entry["environment"].get("date", "an unknown date")
        said = f"recorded by scripts.example on {measured_at}, and imported"
        points = [
            MetricPoint(name, int(step), value) for name, series in entry["metrics"].items() for step, value in series
        ]
        result = NewResult(entry["kind"], entry["values"], entry["environment"])
        store.jobs.append(
            job.id, job.attempt, [LogLine(1, said, "info", datetime.datetime.now(datetime.UTC)), *points, result]
        )
        store.jobs.finish(job.id, job.attempt, JobState.SUCCEEDED)
    return revisions
