"""The records that the store hands out: frozen, detached from the database, with times in UTC.

``Progress``, ``MetricPoint``, ``LogLine``, ``Artifact``, ``GeneratedToken`` and ``NewResult`` are also what a running
job's worker appends.
"""

from __future__ import annotations

import dataclasses
import datetime
import enum
from collections.abc import Mapping
from typing import Any


class JobState(enum.StrEnum):
    """Where a job stands. A job's row is the only place that says so."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """Whether no worker will touch the job again."""
        return self in ENDED_STATES


ENDED_STATES = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})
ACTIVE_STATES = frozenset({JobState.QUEUED, JobState.RUNNING})


class DecisionStatus(enum.StrEnum):
    """The status of a decision, in the words of MADR (https://adr.github.io/madr/)."""

    PROPOSED = "proposed"
    ACCEPTED = "accepted"
    REJECTED = "rejected"
    DEPRECATED = "deprecated"
    SUPERSEDED = "superseded"


@dataclasses.dataclass(frozen=True, slots=True)
class Revision:
    """One immutable state of a design. ``number`` counts from 1 within the design; ``name`` is the spec's own name."""

    id: int
    design_id: int
    number: int
    name: str
    spec: Mapping[str, Any]
    content_hash: str
    note: str
    created_at: datetime.datetime


@dataclasses.dataclass(frozen=True, slots=True)
class Design:
    """A named line of revisions. ``version`` grows with every rename, archiving and new revision."""

    id: int
    name: str
    latest: Revision
    archived: bool
    version: int
    created_at: datetime.datetime
    updated_at: datetime.datetime


@dataclasses.dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is: ``done`` of ``total`` in ``unit``; ``seconds_left`` is the job's own estimate."""

    done: int
    total: int
    unit: str
    message: str = ""
    seconds_left: float | None = None

    @property
    def fraction(self) -> float:
        """From 0 to 1; 0 where the total is unknown (0)."""
        return min(1.0, max(0.0, self.done / self.total)) if self.total > 0 else 0.0


@dataclasses.dataclass(frozen=True, slots=True)
class MetricPoint:
    """The value of a named series at a step. A later write of the same job, name and step replaces the value."""

    name: str
    step: int
    value: float


@dataclasses.dataclass(frozen=True, slots=True)
class LogLine:
    """A line of a job's log. ``sequence`` counts within the job, over all its attempts."""

    sequence: int
    message: str
    level: str
    created_at: datetime.datetime


@dataclasses.dataclass(frozen=True, slots=True)
class Artifact:
    """A file that a job left; ``path`` is relative to the job's directory."""

    name: str
    path: str
    media_type: str


@dataclasses.dataclass(frozen=True, slots=True)
class GeneratedToken:
    """A token of a text that a job writes; a later write of the same job, text and position replaces it.

    ``text`` counts the texts that are written side by side, and ``position`` the tokens of one, both from 0.
    ``values`` is the rest of what the job says of it.
    """

    text: int
    position: int
    values: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class NewResult:
    """What a job found, to be stored: a job keeps the first result of each kind that it reports."""

    kind: str
    values: Mapping[str, Any]
    environment: Mapping[str, Any]


JobEvent = Progress | MetricPoint | LogLine | Artifact | GeneratedToken | NewResult


@dataclasses.dataclass(frozen=True, slots=True)
class Job:
    """A piece of work on one revision.

    ``attempt`` is 0 until a worker first takes the job and grows by one with each taking: it is the fencing token that
    every write of a worker carries. ``takeovers`` counts the workers that were lost while they had it.
    """

    id: str
    kind: str
    name: str
    revision_id: int
    plan: Mapping[str, Any]
    state: JobState
    attempt: int
    takeovers: int
    worker_id: str | None
    lease_until: datetime.datetime | None
    cancel_requested: bool
    error: str | None
    progress: Progress | None
    event_count: int
    archived: bool
    created_at: datetime.datetime
    started_at: datetime.datetime | None
    finished_at: datetime.datetime | None


@dataclasses.dataclass(frozen=True, slots=True)
class HeartbeatState:
    """What a worker learns when it renews its lease: whether to stop, and whether the job is still its own."""

    cancel_requested: bool
    lost: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """What a job found, with the environment that it was found in. Only its name and whether it is archived change."""

    id: int
    job_id: str
    revision_id: int
    kind: str
    name: str
    values: Mapping[str, Any]
    environment: Mapping[str, Any]
    created_at: datetime.datetime
    archived: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Option:
    """An option that was considered, with what speaks for it and against it."""

    title: str
    good: tuple[str, ...] = ()
    bad: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Evidence:
    """A number that a decision rests on, with the value that it had when the decision was taken.

    ``kind`` is ``revision`` or ``result`` and says what ``reference_id`` is the id of.
    """

    kind: str
    reference_id: int
    quantity: str
    value: int | float
    unit: str
    label: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Decision:
    """An architecture decision record in the form of MADR. ``version`` grows with every change."""

    id: int
    number: int
    title: str
    status: DecisionStatus
    context: str
    drivers: tuple[str, ...]
    options: tuple[Option, ...]
    outcome: str
    consequences: str
    evidence: tuple[Evidence, ...]
    superseded_by: int | None
    version: int
    created_at: datetime.datetime
    updated_at: datetime.datetime


@dataclasses.dataclass(frozen=True, slots=True)
class Worker:
    """A process that takes jobs from the queue, and when it was last heard of."""

    id: str
    host: str
    pid: int
    description: str
    started_at: datetime.datetime
    beat_at: datetime.datetime
