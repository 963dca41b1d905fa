"""The tables. They are created by the migrations; a test holds that the two agree.

JSON is stored as text and never queried: so NaN, the order of keys and every digit survive on both databases.
"""

from __future__ import annotations

import datetime
import json
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class JsonText(sa.types.TypeDecorator[Any]):
    """A JSON value as text."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: sa.Dialect) -> str | None:
        """Python value to text; ``None`` stays NULL."""
        return None if value is None else json.dumps(value, separators=(",", ":"))

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> Any:
        """Text to Python value."""
        return None if value is None else json.loads(value)


class UtcDateTime(sa.types.TypeDecorator[datetime.datetime]):
    """A moment in UTC. SQLite has no time zones, so it keeps the UTC clock reading."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime.datetime | None, dialect: sa.Dialect) -> datetime.datetime | None:
        """Refuse naive times, since nobody could say which zone they meant."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time without a time zone cannot be stored")
        value = value.astimezone(datetime.UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime.datetime | None, dialect: sa.Dialect) -> datetime.datetime | None:
        """Give every time its zone back."""
        if value is None:
            return None
        return value.replace(tzinfo=datetime.UTC) if value.tzinfo is None else value.astimezone(datetime.UTC)


class Base(DeclarativeBase):
    """All tables, with constraint names that migrations can refer to."""

    metadata = sa.MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {datetime.datetime: UtcDateTime, str: sa.Text}


class DesignRow(Base):
    """A design's name and state; what it is stands in its revisions."""

    __tablename__ = "design"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    archived: Mapped[bool]
    version: Mapped[int]
    created_at: Mapped[datetime.datetime]
    updated_at: Mapped[datetime.datetime]


class RevisionRow(Base):
    """An immutable spec. Triggers refuse its change and its removal."""

    __tablename__ = "revision"
    __table_args__ = (sa.UniqueConstraint("design_id", "number"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    design_id: Mapped[int] = mapped_column(sa.ForeignKey("design.id"))
    number: Mapped[int]
    name: Mapped[str]
    spec: Mapped[dict[str, Any]] = mapped_column(JsonText)
    content_hash: Mapped[str] = mapped_column(index=True)
    note: Mapped[str]
    created_at: Mapped[datetime.datetime]


class JobRow(Base):
    """A job: its state, and the lease of the worker that has it."""

    __tablename__ = "job"
    __table_args__ = (
        sa.CheckConstraint("state IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')", name="state"),
        sa.Index(None, "state", "created_at"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    name: Mapped[str]
    revision_id: Mapped[int] = mapped_column(sa.ForeignKey("revision.id"), index=True)
    plan: Mapped[dict[str, Any]] = mapped_column(JsonText)
    state: Mapped[str]
    attempt: Mapped[int]
    takeovers: Mapped[int]
    worker_id: Mapped[str | None]
    lease_until: Mapped[datetime.datetime | None]
    cancel_requested: Mapped[bool]
    error: Mapped[str | None]
    progress: Mapped[dict[str, Any] | None] = mapped_column(JsonText)
    event_count: Mapped[int] = mapped_column(sa.BigInteger)
    archived: Mapped[bool]
    created_at: Mapped[datetime.datetime]
    started_at: Mapped[datetime.datetime | None]
    finished_at: Mapped[datetime.datetime | None]


class MetricRow(Base):
    """One point of one series of one job. NULL stands for NaN, which SQLite cannot keep."""

    __tablename__ = "metric"
    __table_args__ = {"sqlite_with_rowid": False}

    job_id: Mapped[str] = mapped_column(sa.ForeignKey("job.id"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    step: Mapped[int] = mapped_column(sa.BigInteger, primary_key=True)
    value: Mapped[float | None] = mapped_column(sa.Double)


class LogRow(Base):
    """One line of a job's log."""

    __tablename__ = "log"
    __table_args__ = {"sqlite_with_rowid": False}

    job_id: Mapped[str] = mapped_column(sa.ForeignKey("job.id"), primary_key=True)
    sequence: Mapped[int] = mapped_column(sa.BigInteger, primary_key=True)
    level: Mapped[str]
    message: Mapped[str]
    created_at: Mapped[datetime.datetime]


class TokenRow(Base):
    """One token of one text that a job writes."""

    __tablename__ = "token"
    __table_args__ = {"sqlite_with_rowid": False}

    job_id: Mapped[str] = mapped_column(sa.ForeignKey("job.id"), primary_key=True)
    text: Mapped[int] = mapped_column(primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    said: Mapped[dict[str, Any]] = mapped_column(JsonText)


class ArtifactRow(Base):
    """A file in a job's directory."""

    __tablename__ = "artifact"

    job_id: Mapped[str] = mapped_column(sa.ForeignKey("job.id"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    path: Mapped[str]
    media_type: Mapped[str]


class ResultRow(Base):
    """What a job found. Triggers let only its name and its archiving change."""

    __tablename__ = "result"
    __table_args__ = (sa.UniqueConstraint("job_id", "kind"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[str] = mapped_column(sa.ForeignKey("job.id"))
    revision_id: Mapped[int] = mapped_column(sa.ForeignKey("revision.id"), index=True)
    kind: Mapped[str]
    name: Mapped[str]
    measured: Mapped[dict[str, Any]] = mapped_column(JsonText)
    environment: Mapped[dict[str, Any]] = mapped_column(JsonText)
    created_at: Mapped[datetime.datetime]
    archived: Mapped[bool]


class DecisionRow(Base):
    """A decision record; lists are kept as JSON."""

    __tablename__ = "decision"
    __table_args__ = (
        sa.CheckConstraint("status IN ('proposed', 'accepted', 'rejected', 'deprecated', 'superseded')", name="status"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(unique=True)
    title: Mapped[str]
    status: Mapped[str]
    context: Mapped[str]
    drivers: Mapped[list[str]] = mapped_column(JsonText)
    options: Mapped[list[dict[str, Any]]] = mapped_column(JsonText)
    outcome: Mapped[str]
    consequences: Mapped[str]
    superseded_by: Mapped[int | None] = mapped_column(sa.ForeignKey("decision.id"))
    version: Mapped[int]
    created_at: Mapped[datetime.datetime]
    updated_at: Mapped[datetime.datetime]


class EvidenceRow(Base):
    """A number that a decision rests on: of a revision or of a result, never of both."""

    __tablename__ = "evidence"
    __table_args__ = (sa.CheckConstraint("(revision_id IS NULL) <> (result_id IS NULL)", name="one_reference"),)

    decision_id: Mapped[int] = mapped_column(sa.ForeignKey("decision.id"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    revision_id: Mapped[int | None] = mapped_column(sa.ForeignKey("revision.id"), index=True)
    result_id: Mapped[int | None] = mapped_column(sa.ForeignKey("result.id"), index=True)
    quantity: Mapped[str]
    value: Mapped[int | float] = mapped_column(JsonText)
    unit: Mapped[str]
    label: Mapped[str]


class WorkerRow(Base):
    """A worker process, as it last spoke."""

    __tablename__ = "worker"

    id: Mapped[str] = mapped_column(primary_key=True)
    host: Mapped[str]
    pid: Mapped[int]
    description: Mapped[str]
    started_at: Mapped[datetime.datetime]
    beat_at: Mapped[datetime.datetime]
