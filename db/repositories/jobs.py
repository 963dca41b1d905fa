"""The queue and the record of jobs: one row a job, which alone says where the job stands.

A worker takes a job with a lease. While the lease lasts nobody else can have the job; if it runs out (the worker died,
or lost the database), the next worker that asks takes the job over. Each taking raises ``attempt``, and every write of
a worker carries the attempt that it was given: what an earlier attempt still wants to write is refused (a fencing
token, https://martin.kleppmann.com/2016/02/08/how-to-do-distributed-locking.html). Metrics are keyed by (job, name,
step) and logs by (job, sequence), so that what is written again after a takeover does not double.
"""

from __future__ import annotations

import dataclasses
import datetime
import math
import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from db.errors import InvalidRecord, StaleAttempt
from db.models import ArtifactRow, JobRow, LogRow, MetricRow, ResultRow, RevisionRow, TokenRow
from db.records import (
    ENDED_STATES,
    Artifact,
    GeneratedToken,
    HeartbeatState,
    Job,
    JobEvent,
    JobState,
    LogLine,
    MetricPoint,
    NewResult,
    Progress,
)
from db.repositories.common import clean_name, clean_text, get_row, insert, require
from db.sessions import Database

DEFAULT_LEASE_SECONDS = 30.0
MAX_TAKEOVERS = 3  # a job that has cost three workers their life would cost the fourth one's too


class Jobs:
    """Submit, take, watch and end jobs."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # --- what people do ---

    def enqueue(self, kind: str, revision_id: int, plan: Mapping[str, Any], name: str | None = None) -> Job:
        """Put a job into the queue; without a name it is called by its kind and its spec."""
        with self._database.write() as session:
            return _job(self._add(session, kind, revision_id, plan, name))

    def get(self, job_id: str) -> Job:
        """One job, or ``NotFound``."""
        with self._database.read() as session:
            return _job(get_row(session, JobRow, job_id, "job"))

    def list(
        self,
        states: Iterable[str] | None = None,
        kind: str | None = None,
        revision_id: int | None = None,
        *,
        include_archived: bool = False,
        limit: int | None = None,
    ) -> tuple[Job, ...]:
        """Jobs, the newest first."""
        chosen = sa.select(JobRow).order_by(JobRow.created_at.desc(), JobRow.id.desc()).limit(limit)
        if states is not None:
            chosen = chosen.where(JobRow.state.in_([str(state) for state in states]))
        if kind is not None:
            chosen = chosen.where(JobRow.kind == kind)
        if revision_id is not None:
            chosen = chosen.where(JobRow.revision_id == revision_id)
        if not include_archived:
            chosen = chosen.where(JobRow.archived.is_(False))
        with self._database.read() as session:
            return tuple(_job(row) for row in session.scalars(chosen))

    def counts(self) -> dict[JobState, int]:
        """How many jobs are in each state, archived ones included."""
        with self._database.read() as session:
            rows = session.execute(sa.select(JobRow.state, sa.func.count()).group_by(JobRow.state))
            found = {JobState(state): count for state, count in rows}
        return {state: found.get(state, 0) for state in JobState}

    def request_cancel(self, job_id: str) -> Job:
        """Ask that the job end. It is cancelled at once if no worker has it, else when its processes are gone."""
        with self._database.write() as session:
            row = _for_change(session, job_id)
            now = self._database.now(session)
            if row.state == JobState.QUEUED or (row.state == JobState.RUNNING and _expired(row, now)):
                row.cancel_requested = True
                _end(row, JobState.CANCELLED, None, now)
            elif row.state == JobState.RUNNING:
                row.cancel_requested = True
            return _job(row)

    def rename(self, job_id: str, name: str) -> Job:
        """Give the job another name; its results keep theirs."""
        with self._database.write() as session:
            row = _for_change(session, job_id)
            row.name = clean_name(name, "job")
            return _job(row)

    def archive(self, job_id: str) -> Job:
        """Take an ended job out of sight."""
        with self._database.write() as session:
            row = _for_change(session, job_id)
            if JobState(row.state) not in ENDED_STATES:
                raise InvalidRecord(f"job {row.name!r} is {row.state}: cancel it before archiving it")
            row.archived = True
            return _job(row)

    def restore(self, job_id: str) -> Job:
        """Bring an archived job back."""
        with self._database.write() as session:
            row = _for_change(session, job_id)
            row.archived = False
            return _job(row)

    # --- what workers do ---

    def claim(
        self, worker_id: str, lease_seconds: float = DEFAULT_LEASE_SECONDS, kinds: Sequence[str] | None = None
    ) -> Job | None:
        """Take the job that waits longest, or take over one whose lease has run out; ``None`` if there is none."""
        with self._database.write() as session:
            now = self._database.now(session)
            lost = sa.and_(JobRow.state == JobState.RUNNING.value, JobRow.lease_until < now)
            self._end_hopeless(session, lost, now)
            chosen = sa.select(JobRow).where(sa.or_(JobRow.state == JobState.QUEUED.value, lost))
            if kinds is not None:
                chosen = chosen.where(JobRow.kind.in_(list(kinds)))
            chosen = chosen.order_by(JobRow.created_at, JobRow.id).limit(1).with_for_update(skip_locked=True)
            row = session.scalars(chosen).first()
            if row is None:
                return None
            if row.state == JobState.RUNNING:
                row.takeovers += 1
            _take(row, worker_id, lease_seconds, now)
            return _job(row)

    def begin(
        self,
        kind: str,
        revision_id: int,
        plan: Mapping[str, Any],
        worker_id: str,
        lease_seconds: float = DEFAULT_LEASE_SECONDS,
        name: str | None = None,
    ) -> Job:
        """A job that the caller runs itself, here and now: recorded as taken already, so that no worker takes it."""
        with self._database.write() as session:
            row = self._add(session, kind, revision_id, plan, name)
            _take(row, worker_id, lease_seconds, self._database.now(session))
            return _job(row)

    def heartbeat(self, job_id: str, attempt: int, lease_seconds: float = DEFAULT_LEASE_SECONDS) -> HeartbeatState:
        """Renew the lease. A lease that ran out can be renewed as long as nobody took the job over."""
        with self._database.write() as session:
            row = _for_change(session, job_id)
            if row.attempt != attempt or row.state != JobState.RUNNING:
                return HeartbeatState(cancel_requested=row.cancel_requested, lost=True)
            row.lease_until = self._database.now(session) + datetime.timedelta(seconds=lease_seconds)
            return HeartbeatState(cancel_requested=row.cancel_requested, lost=False)

    def append(self, job_id: str, attempt: int, events: Iterable[JobEvent]) -> int:
        """Write what a job said, all or nothing, and return how many events there were.

        Writing the same events again changes nothing. Raises ``StaleAttempt`` if the job is not this attempt's.
        """
        said = tuple(events)
        with self._database.write() as session:
            row = self._own(session, job_id, attempt)
            metrics = {(e.name, e.step): e.value for e in said if isinstance(e, MetricPoint)}
            logs = {e.sequence: e for e in said if isinstance(e, LogLine)}
            artifacts = {e.name: e for e in said if isinstance(e, Artifact)}
            _write_metrics(session, job_id, metrics)
            _write_logs(session, job_id, logs)
            _write_artifacts(session, job_id, artifacts)
            _write_tokens(session, job_id, {(e.text, e.position): e for e in said if isinstance(e, GeneratedToken)})
            for event in said:
                if isinstance(event, Progress):
                    row.progress = dataclasses.asdict(event)
                elif isinstance(event, NewResult):
                    self._write_result(session, row, event)
            row.event_count += len(said)
        return len(said)

    def finish(self, job_id: str, attempt: int, state: JobState, error: str | None = None) -> Job:
        """End the job as succeeded, failed or cancelled. Raises ``StaleAttempt`` if it is not this attempt's."""
        if state not in ENDED_STATES:
            raise InvalidRecord(f"a job does not end as {state}")
        with self._database.write() as session:
            row = self._own(session, job_id, attempt)
            _end(row, state, error, self._database.now(session))
            return _job(row)

    def release(self, job_id: str, attempt: int) -> Job:
        """Put the job back into the queue, as a worker does that is told to stop; its next attempt resumes it.

        If the job is asked to be cancelled it ends instead. Raises ``StaleAttempt`` if it is not this attempt's.
        """
        with self._database.write() as session:
            row = self._own(session, job_id, attempt)
            if row.cancel_requested:
                _end(row, JobState.CANCELLED, None, self._database.now(session))
            else:
                row.state = JobState.QUEUED.value
                row.worker_id = None
                row.lease_until = None
            return _job(row)

    def next_log_sequence(self, job_id: str) -> int:
        """The sequence that the job's next log line takes; the first is 1."""
        with self._database.read() as session:
            last = session.scalar(sa.select(sa.func.max(LogRow.sequence)).where(LogRow.job_id == job_id))
            return (last or 0) + 1

    # --- what a job said ---

    def metrics(
        self, job_id: str, names: Sequence[str] | None = None, after_step: int | None = None
    ) -> tuple[MetricPoint, ...]:
        """The points of a job's series, by name and step; only those after a step, for a reader with a cursor."""
        chosen = sa.select(MetricRow.name, MetricRow.step, MetricRow.value).where(MetricRow.job_id == job_id)
        if names is not None:
            chosen = chosen.where(MetricRow.name.in_(list(names)))
        if after_step is not None:
            chosen = chosen.where(MetricRow.step > after_step)
        with self._database.read() as session:
            rows = session.execute(chosen.order_by(MetricRow.name, MetricRow.step))
            return tuple(MetricPoint(name, step, math.nan if value is None else value) for name, step, value in rows)

    def metric_names(self, job_id: str) -> tuple[str, ...]:
        """The names of a job's series, sorted."""
        chosen = sa.select(MetricRow.name).where(MetricRow.job_id == job_id).distinct().order_by(MetricRow.name)
        with self._database.read() as session:
            return tuple(session.scalars(chosen))

    def logs(self, job_id: str, after_sequence: int = 0, limit: int | None = None) -> tuple[LogLine, ...]:
        """The lines of a job's log after a sequence, in order."""
        chosen = sa.select(LogRow).where(LogRow.job_id == job_id, LogRow.sequence > after_sequence)
        with self._database.read() as session:
            rows = session.scalars(chosen.order_by(LogRow.sequence).limit(limit))
            return tuple(LogLine(row.sequence, row.message, row.level, row.created_at) for row in rows)

    def artifacts(self, job_id: str) -> tuple[Artifact, ...]:
        """The files that a job left, by name."""
        chosen = sa.select(ArtifactRow).where(ArtifactRow.job_id == job_id).order_by(ArtifactRow.name)
        with self._database.read() as session:
            return tuple(Artifact(row.name, row.path, row.media_type) for row in session.scalars(chosen))

    def tokens(self, job_id: str) -> tuple[GeneratedToken, ...]:
        """The tokens of the texts that a job writes, text by text in order."""
        chosen = sa.select(TokenRow).where(TokenRow.job_id == job_id).order_by(TokenRow.text, TokenRow.position)
        with self._database.read() as session:
            return tuple(GeneratedToken(row.text, row.position, row.said) for row in session.scalars(chosen))

    # --- inside ---

    def _add(self, session: Session, kind: str, revision_id: int, plan: Mapping[str, Any], name: str | None) -> JobRow:
        revision = get_row(session, RevisionRow, revision_id, "revision")
        row = JobRow(
            # Random, since it also names a directory, which databases may share.
            id=secrets.token_hex(8),
            kind=clean_name(kind, "job's kind"),
            name=clean_name(name or f"{kind} {revision.name}", "job"),
            revision_id=revision_id,
            plan=dict(plan),
            state=JobState.QUEUED.value,
            attempt=0,
            takeovers=0,
            worker_id=None,
            lease_until=None,
            cancel_requested=False,
            error=None,
            progress=None,
            event_count=0,
            archived=False,
            created_at=self._database.now(session),
            started_at=None,
            finished_at=None,
        )
        session.add(row)
        session.flush()
        return row

    @staticmethod
    def _own(session: Session, job_id: str, attempt: int) -> JobRow:
        row = _for_change(session, job_id)
        if row.attempt != attempt or row.state != JobState.RUNNING:
            raise StaleAttempt(
                f"attempt {attempt} at job {job_id} does not have it any more: it is {row.state}, attempt {row.attempt}"
            )
        return row

    @staticmethod
    def _end_hopeless(session: Session, lost: sa.ColumnElement[bool], now: datetime.datetime) -> None:
        """End the lost jobs that were to be cancelled, and those that keep taking their workers with them."""
        hopeless = sa.or_(JobRow.cancel_requested.is_(True), JobRow.takeovers >= MAX_TAKEOVERS)
        for row in session.scalars(sa.select(JobRow).where(lost, hopeless).with_for_update(skip_locked=True)):
            if row.cancel_requested:
                _end(row, JobState.CANCELLED, None, now)
            else:
                error = f"given up: {row.takeovers + 1} workers in a row were lost while they ran this job"
                _end(row, JobState.FAILED, error, now)
        session.flush()

    def _write_result(self, session: Session, job: JobRow, event: NewResult) -> None:
        # The first of its kind stands: a job that is taken over after its end must not change what was measured.
        statement = insert(session, ResultRow).values(
            job_id=job.id,
            revision_id=job.revision_id,
            kind=event.kind,
            name=job.name,
            measured=dict(event.values),
            environment=dict(event.environment),
            created_at=self._database.now(session),
            archived=False,
        )
        session.execute(statement.on_conflict_do_nothing(index_elements=["job_id", "kind"]))


def _for_change(session: Session, job_id: str) -> JobRow:
    return require(
        session.scalars(sa.select(JobRow).where(JobRow.id == job_id).with_for_update()).first(), "job", job_id
    )


def _expired(row: JobRow, now: datetime.datetime) -> bool:
    return row.lease_until is not None and row.lease_until < now


def _take(row: JobRow, worker_id: str, lease_seconds: float, now: datetime.datetime) -> None:
    row.state = JobState.RUNNING.value
    row.worker_id = worker_id
    row.attempt += 1
    row.lease_until = now + datetime.timedelta(seconds=lease_seconds)
    row.started_at = row.started_at or now


def _end(row: JobRow, state: JobState, error: str | None, now: datetime.datetime) -> None:
    row.state = state.value
    row.error = None if error is None else clean_text(error)
    row.lease_until = None
    row.finished_at = now


def _write_metrics(session: Session, job_id: str, metrics: Mapping[tuple[str, int], float]) -> None:
    if not metrics:
        return
    statement = insert(session, MetricRow)
    statement = statement.on_conflict_do_update(
        index_elements=["job_id", "name", "step"], set_={"value": statement.excluded.value}
    )
    session.connection().execute(
        statement,
        [
            {"job_id": job_id, "name": clean_text(name), "step": step, "value": None if math.isnan(value) else value}
            for (name, step), value in metrics.items()
        ],
    )


def _write_logs(session: Session, job_id: str, logs: Mapping[int, LogLine]) -> None:
    if not logs:
        return
    session.connection().execute(
        insert(session, LogRow).on_conflict_do_nothing(index_elements=["job_id", "sequence"]),
        [
            {
                "job_id": job_id,
                "sequence": line.sequence,
                "level": clean_text(line.level),
                "message": clean_text(line.message),
                "created_at": line.created_at,
            }
            for line in logs.values()
        ],
    )


def _write_artifacts(session: Session, job_id: str, artifacts: Mapping[str, Artifact]) -> None:
    if not artifacts:
        return
    statement = insert(session, ArtifactRow)
    statement = statement.on_conflict_do_update(
        index_elements=["job_id", "name"],
        set_={"path": statement.excluded.path, "media_type": statement.excluded.media_type},
    )
    session.connection().execute(
        statement,
        [
            {
                "job_id": job_id,
                "name": clean_text(artifact.name),
                "path": clean_text(artifact.path),
                "media_type": artifact.media_type,
            }
            for artifact in artifacts.values()
        ],
    )


def _write_tokens(session: Session, job_id: str, tokens: Mapping[tuple[int, int], GeneratedToken]) -> None:
    if not tokens:
        return
    statement = insert(session, TokenRow)
    statement = statement.on_conflict_do_update(
        index_elements=["job_id", "text", "position"], set_={"said": statement.excluded.said}
    )
    session.connection().execute(
        statement,
        [
            {"job_id": job_id, "text": text, "position": position, "said": dict(token.values)}
            for (text, position), token in tokens.items()
        ],
    )


def _job(row: JobRow) -> Job:
    return Job(
        id=row.id,
        kind=row.kind,
        name=row.name,
        revision_id=row.revision_id,
        plan=row.plan,
        state=JobState(row.state),
        attempt=row.attempt,
        takeovers=row.takeovers,
        worker_id=row.worker_id,
        lease_until=row.lease_until,
        cancel_requested=row.cancel_requested,
        error=row.error,
        progress=None if row.progress is None else Progress(**row.progress),
        event_count=row.event_count,
        archived=row.archived,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
    )
