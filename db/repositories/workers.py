"""Which workers are there."""

from __future__ import annotations

import datetime

import sqlalchemy as sa

from db.models import WorkerRow
from db.records import Worker
from db.repositories.common import insert
from db.sessions import Database


class Workers:
    """Workers say that they live; pages ask who does."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def beat(self, worker_id: str, host: str, pid: int, description: str) -> None:
        """Say that a worker lives."""
        with self._database.write() as session:
            now = self._database.now(session)
            said = {"host": host, "pid": pid, "description": description, "beat_at": now}
            statement = insert(session, WorkerRow).values(id=worker_id, started_at=now, **said)
            session.execute(statement.on_conflict_do_update(index_elements=["id"], set_=said))

    def leave(self, worker_id: str) -> None:
        """Say that a worker ends."""
        with self._database.write() as session:
            session.execute(sa.delete(WorkerRow).where(WorkerRow.id == worker_id))

    def alive(self, within_seconds: float = 15.0) -> tuple[Worker, ...]:
        """The workers heard of within the last seconds, the longest running first."""
        with self._database.read() as session:
            since = self._database.now(session) - datetime.timedelta(seconds=within_seconds)
            chosen = sa.select(WorkerRow).where(WorkerRow.beat_at >= since)
            return tuple(
                Worker(
                    id=row.id,
                    host=row.host,
                    pid=row.pid,
                    description=row.description,
                    started_at=row.started_at,
                    beat_at=row.beat_at,
                )
                for row in session.scalars(chosen.order_by(WorkerRow.started_at, WorkerRow.id))
            )
