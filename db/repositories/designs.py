"""Designs and their immutable revisions."""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from db.errors import Conflict, InvalidRecord
from db.models import DesignRow, RevisionRow
from db.records import Design, Revision
from db.repositories.common import clean_name, clean_text, get_row, require
from db.sessions import Database
from planner.errors import PlannerError
from planner.spec import parse_spec


def content_hash(spec: Mapping[str, Any]) -> str:
    """The planner's hash of the spec: what it is, not how it is called, nor which defaults were written out.

    What the planner does not read is hashed as it stands. Raises ``InvalidRecord`` for what JSON cannot say.
    """
    content = {key: value for key, value in spec.items() if key != "name"}
    try:
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidRecord(f"the specification cannot be written as JSON: {error}") from error
    try:
        return parse_spec(content).content_hash()
    except PlannerError:
        return hashlib.sha256(canonical.encode()).hexdigest()


class Designs:
    """Create, revise and find designs. Nothing is ever removed: an archived design is only out of sight."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, name: str, spec: Mapping[str, Any], note: str = "") -> Design:
        """A new design with ``spec`` as its revision 1."""
        with self._database.write() as session:
            return self._create(session, clean_name(name, "design"), spec, note)

    def save_revision(
        self, design_id: int, spec: Mapping[str, Any], note: str = "", *, expected_number: int | None = None
    ) -> Revision:
        """Save ``spec`` as the design's next revision; the latest one comes back if its content is the same.

        ``expected_number`` is the number of the revision that the edit began from: if the latest is another by now,
        ``Conflict`` is raised and nothing is saved.
        """
        with self._database.write() as session:
            design = self._design_for_change(session, design_id)
            latest = self._latest(session, design_id)
            if latest.content_hash == content_hash(spec):
                return _revision(latest)
            if expected_number is not None and expected_number != latest.number:
                raise Conflict(
                    f"{design.name!r} is at revision {latest.number} by now, and this edit began from revision "
                    f"{expected_number}: compare the two, then save again or save as a new design"
                )
            now = self._database.now(session)
            self._touch(design, now)
            return _revision(self._add(session, design_id, latest.number + 1, spec, note, now))

    def get(self, design_id: int) -> Design:
        """The design with its latest revision, or ``NotFound``."""
        with self._database.read() as session:
            design = get_row(session, DesignRow, design_id, "design")
            return _design(design, self._latest(session, design_id))

    def revision(self, revision_id: int) -> Revision:
        """One revision, or ``NotFound``."""
        with self._database.read() as session:
            return _revision(get_row(session, RevisionRow, revision_id, "revision"))

    def revisions(self, design_id: int) -> tuple[Revision, ...]:
        """All revisions of a design, the oldest first."""
        with self._database.read() as session:
            get_row(session, DesignRow, design_id, "design")
            chosen = sa.select(RevisionRow).where(RevisionRow.design_id == design_id).order_by(RevisionRow.number)
            return tuple(_revision(row) for row in session.scalars(chosen))

    def find_revision(self, content_hash: str) -> Revision | None:
        """The newest revision with this content, in whichever design, or ``None``."""
        with self._database.read() as session:
            chosen = sa.select(RevisionRow).where(RevisionRow.content_hash == content_hash)
            row = session.scalars(chosen.order_by(RevisionRow.id.desc()).limit(1)).first()
            return None if row is None else _revision(row)

    def list(self, include_archived: bool = False) -> tuple[Design, ...]:
        """All designs, the last changed first."""
        newest = (
            sa.select(RevisionRow.design_id, sa.func.max(RevisionRow.number).label("number"))
            .group_by(RevisionRow.design_id)
            .subquery()
        )
        chosen = (
            sa.select(DesignRow, RevisionRow)
            .join(newest, newest.c.design_id == DesignRow.id)
            .join(RevisionRow, sa.and_(RevisionRow.design_id == DesignRow.id, RevisionRow.number == newest.c.number))
            .order_by(DesignRow.updated_at.desc(), DesignRow.id.desc())
        )
        if not include_archived:
            chosen = chosen.where(DesignRow.archived.is_(False))
        with self._database.read() as session:
            return tuple(_design(design, latest) for design, latest in session.execute(chosen))

    def rename(self, design_id: int, name: str, *, expected_version: int | None = None) -> Design:
        """Give the design another name; revisions keep theirs. ``Conflict`` if it is not at ``expected_version``."""
        with self._database.write() as session:
            design = self._design_for_change(session, design_id)
            if expected_version is not None and expected_version != design.version:
                raise Conflict(f"somebody else changed {design.name!r} meanwhile: read it again before renaming it")
            design.name = clean_name(name, "design")
            self._touch(design, self._database.now(session))
            return _design(design, self._latest(session, design_id))

    def duplicate(self, design_id: int, name: str | None = None) -> Design:
        """A new design that begins with the latest revision of another."""
        with self._database.write() as session:
            source = get_row(session, DesignRow, design_id, "design")
            latest = self._latest(session, design_id)
            chosen = clean_name(name if name is not None else f"{source.name} copy", "design")
            note = f"Copied from {source.name}, revision {latest.number}"
            return self._create(session, chosen, latest.spec, note)

    def archive(self, design_id: int) -> Design:
        """Take the design out of sight; its revisions, jobs and results stay."""
        return self._set_archived(design_id, True)

    def restore(self, design_id: int) -> Design:
        """Bring an archived design back."""
        return self._set_archived(design_id, False)

    def _set_archived(self, design_id: int, archived: bool) -> Design:
        with self._database.write() as session:
            design = self._design_for_change(session, design_id)
            design.archived = archived
            self._touch(design, self._database.now(session))
            return _design(design, self._latest(session, design_id))

    def _create(self, session: Session, name: str, spec: Mapping[str, Any], note: str) -> Design:
        now = self._database.now(session)
        design = DesignRow(name=name, archived=False, version=1, created_at=now, updated_at=now)
        session.add(design)
        session.flush()
        return _design(design, self._add(session, design.id, 1, spec, note, now))

    @staticmethod
    def _add(
        session: Session, design_id: int, number: int, spec: Mapping[str, Any], note: str, now: datetime.datetime
    ) -> RevisionRow:
        revision = RevisionRow(
            design_id=design_id,
            number=number,
            name=clean_text(str(spec.get("name") or "")),
            spec=dict(spec),
            content_hash=content_hash(spec),
            note=clean_text(note),
            created_at=now,
        )
        session.add(revision)
        session.flush()
        return revision

    @staticmethod
    def _design_for_change(session: Session, design_id: int) -> DesignRow:
        # Locked, so that two people saving at once get numbers one after the other.
        chosen = sa.select(DesignRow).where(DesignRow.id == design_id).with_for_update()
        return require(session.scalars(chosen).first(), "design", design_id)

    @staticmethod
    def _latest(session: Session, design_id: int) -> RevisionRow:
        chosen = sa.select(RevisionRow).where(RevisionRow.design_id == design_id)
        return session.scalars(chosen.order_by(RevisionRow.number.desc()).limit(1)).one()

    @staticmethod
    def _touch(design: DesignRow, now: datetime.datetime) -> None:
        design.version += 1
        design.updated_at = now


def _revision(row: RevisionRow) -> Revision:
    return Revision(
        id=row.id,
        design_id=row.design_id,
        number=row.number,
        name=row.name,
        spec=row.spec,
        content_hash=row.content_hash,
        note=row.note,
        created_at=row.created_at,
    )


def _design(row: DesignRow, latest: RevisionRow) -> Design:
    return Design(
        id=row.id,
        name=row.name,
        latest=_revision(latest),
        archived=row.archived,
        version=row.version,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )
