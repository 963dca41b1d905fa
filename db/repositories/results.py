"""What jobs found."""

from __future__ import annotations

import sqlalchemy as sa

from db.models import ResultRow, RevisionRow
from db.records import Result
from db.repositories.common import clean_name, get_row
from db.sessions import Database


class Results:
    """Read, rename and archive results. They are written by :meth:`db.repositories.jobs.Jobs.append` alone."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, result_id: int) -> Result:
        """One result, or ``NotFound``."""
        with self._database.read() as session:
            return to_record(get_row(session, ResultRow, result_id, "result"))

    def list(
        self,
        *,
        kind: str | None = None,
        revision_id: int | None = None,
        job_id: str | None = None,
        content_hash: str | None = None,
        include_archived: bool = False,
        limit: int | None = None,
    ) -> tuple[Result, ...]:
        """Results, the newest first. ``content_hash`` finds those of any revision with that content."""
        chosen = sa.select(ResultRow).order_by(ResultRow.id.desc()).limit(limit)
        if kind is not None:
            chosen = chosen.where(ResultRow.kind == kind)
        if revision_id is not None:
            chosen = chosen.where(ResultRow.revision_id == revision_id)
        if job_id is not None:
            chosen = chosen.where(ResultRow.job_id == job_id)
        if content_hash is not None:
            chosen = chosen.join(RevisionRow, RevisionRow.id == ResultRow.revision_id)
            chosen = chosen.where(RevisionRow.content_hash == content_hash)
        if not include_archived:
            chosen = chosen.where(ResultRow.archived.is_(False))
        with self._database.read() as session:
            return tuple(to_record(row) for row in session.scalars(chosen))

    def rename(self, result_id: int, name: str) -> Result:
        """Give the result another name."""
        with self._database.write() as session:
            row = get_row(session, ResultRow, result_id, "result")
            row.name = clean_name(name, "result")
            return to_record(row)

    def archive(self, result_id: int) -> Result:
        """Take the result out of sight."""
        return self._set_archived(result_id, True)

    def restore(self, result_id: int) -> Result:
        """Bring an archived result back."""
        return self._set_archived(result_id, False)

    def _set_archived(self, result_id: int, archived: bool) -> Result:
        with self._database.write() as session:
            row = get_row(session, ResultRow, result_id, "result")
            row.archived = archived
            return to_record(row)


def to_record(row: ResultRow) -> Result:
    """The record of a row."""
    return Result(
        id=row.id,
        job_id=row.job_id,
        revision_id=row.revision_id,
        kind=row.kind,
        name=row.name,
        values=row.measured,
        environment=row.environment,
        created_at=row.created_at,
        archived=row.archived,
    )
