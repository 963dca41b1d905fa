"""Runs one claimed job to its end: reads its process, writes its events under its attempt, keeps its lease."""

from __future__ import annotations

import dataclasses
import datetime
import pathlib
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from db import records
from db.engine import Store
from db.errors import StaleAttempt, StoreUnavailable
from planner.paths import data_directory
from runners import events
from runners.engines.process import TERMINATE_GRACE_SECONDS, JobProcess

BATCH_SECONDS = 0.5
BATCH_EVENTS = 200


@dataclasses.dataclass(frozen=True, slots=True)
class Timing:
    """How long a worker waits; short in tests."""

    lease_seconds: float = 30.0
    heartbeat_seconds: float = 3.0
    grace_seconds: float = TERMINATE_GRACE_SECONDS


def job_directory(job_id: str) -> pathlib.Path:
    """Where a job keeps its checkpoints and artifacts."""
    return data_directory() / "jobs" / job_id


class Supervisor:
    """One attempt at one job."""

    def __init__(
        self,
        store: Store,
        job: records.Job,
        timing: Timing,
        stop: threading.Event,
        entry: Mapping[str, str] | None = None,
        watch: Callable[[events.Event], None] | None = None,
    ) -> None:
        self._store = store
        self._job = job
        self._timing = timing
        self._stop = stop
        self._watch = watch
        revision = store.designs.revision(job.revision_id)
        directory = job_directory(job.id)
        request: dict[str, Any] = {
            "kind": job.kind,
            "spec": {**revision.spec, "name": revision.name},
            "plan": dict(job.plan),
            "directory": str(directory),
            "attempt": job.attempt,
        }
        if entry is not None:
            request["entry"] = dict(entry)
        self._sequence = store.jobs.next_log_sequence(job.id)
        self._process = JobProcess(request, directory)
        self._next_beat = 0.0

    def run(self) -> records.Job | None:
        """The job as it ended, or ``None`` if another attempt has taken it over."""
        try:
            return self._run()
        except StaleAttempt:
            self._process.stop(self._timing.grace_seconds)
            return None
        except (StoreUnavailable, KeyboardInterrupt, SystemExit):
            self._process.stop(self._timing.grace_seconds)
            raise
        except Exception as error:  # a job that says what nobody can store fails; it does not take its worker along
            self._process.stop(self._timing.grace_seconds)
            reason = f"the job said what cannot be stored ({type(error).__name__}: {error})".splitlines()[0]
            try:
                return self._store.jobs.finish(self._job.id, self._job.attempt, records.JobState.FAILED, reason)
            except StaleAttempt:
                return None

    def _run(self) -> records.Job | None:
        jobs, job = self._store.jobs, self._job
        if job.attempt > 1:
            self._write([events.Log(f"attempt {job.attempt}: going on from the last checkpoint, if there is one")])
        while not self._process.ended:
            self._write(self._process.read(BATCH_SECONDS, BATCH_EVENTS))
            if self._stop.is_set():
                self._process.stop(self._timing.grace_seconds)
                self._drain()
                return jobs.release(job.id, job.attempt)
            if time.monotonic() >= self._next_beat:
                state = jobs.heartbeat(job.id, job.attempt, self._timing.lease_seconds)
                self._next_beat = time.monotonic() + self._timing.heartbeat_seconds
                if state.lost:
                    raise StaleAttempt(f"job {job.id} was taken over")
                if state.cancel_requested:
                    return self._cancel()
        self._drain()
        status = self._process.wait()
        if status == 0:
            return jobs.finish(job.id, job.attempt, records.JobState.SUCCEEDED)
        return jobs.finish(job.id, job.attempt, records.JobState.FAILED, self._process.why_failed(status))

    def _cancel(self) -> records.Job:
        # The state changes once no process is left: until then the device is not free.
        self._process.stop(self._timing.grace_seconds)
        self._drain()
        return self._store.jobs.finish(self._job.id, self._job.attempt, records.JobState.CANCELLED)

    def _drain(self) -> None:
        while not self._process.ended:
            self._write(self._process.read(1.0))

    def _write(self, said: list[events.Event]) -> None:
        if not said:
            return
        if self._watch is not None:
            for event in said:
                self._watch(event)
        self._store.jobs.append(self._job.id, self._job.attempt, [self._record(event) for event in said])

    def _record(self, event: events.Event) -> records.JobEvent:
        match event:
            case events.Progress():
                return records.Progress(event.done, event.total, event.unit, event.message, event.seconds_left)
            case events.Metric():
                return records.MetricPoint(event.name, event.step, event.value)
            case events.Artifact():
                return records.Artifact(event.name, event.path, event.media_type)
            case events.Token():
                values = dataclasses.asdict(event)
                return records.GeneratedToken(values.pop("text"), values.pop("position"), values)
            case events.Result():
                return records.NewResult(event.kind, event.values, event.environment)
            case events.Log():
                line = records.LogLine(self._sequence, event.message, event.level, datetime.datetime.now(datetime.UTC))
                self._sequence += 1
                return line
