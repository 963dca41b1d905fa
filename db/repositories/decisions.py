"""Architecture decisions, in the form of MADR (https://adr.github.io/madr/), with the numbers they rest on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.orm import Session

from db.errors import Conflict, InvalidRecord
from db.models import DecisionRow, EvidenceRow, ResultRow, RevisionRow
from db.records import Decision, DecisionStatus, Evidence, Option
from db.repositories.common import clean_name, clean_text, get_row, require
from db.sessions import Database

_NUMBERING_LOCK = 0x64656369  # serializes the numbering of decisions on PostgreSQL


class Decisions:
    """Record, change and supersede decisions. None is removed, so their numbers have no gaps."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(
        self,
        title: str,
        *,
        status: str = DecisionStatus.PROPOSED,
        context: str = "",
        drivers: Sequence[str] = (),
        options: Sequence[Option] = (),
        outcome: str = "",
        consequences: str = "",
        evidence: Sequence[Evidence] = (),
    ) -> Decision:
        """A new decision with the next number."""
        with self._database.write() as session:
            if self._database.dialect == "postgresql":
                session.execute(sa.select(sa.func.pg_advisory_xact_lock(_NUMBERING_LOCK)))
            now = self._database.now(session)
            row = DecisionRow(
                number=(session.scalar(sa.select(sa.func.max(DecisionRow.number))) or 0) + 1,
                superseded_by=None,
                version=1,
                created_at=now,
                updated_at=now,
            )
            _fill(row, title, status, context, drivers, options, outcome, consequences)
            session.add(row)
            session.flush()
            _replace_evidence(session, row.id, evidence)
            return _decision(session, row)

    def update(
        self,
        decision_id: int,
        *,
        expected_version: int,
        title: str | None = None,
        status: str | None = None,
        context: str | None = None,
        drivers: Sequence[str] | None = None,
        options: Sequence[Option] | None = None,
        outcome: str | None = None,
        consequences: str | None = None,
        evidence: Sequence[Evidence] | None = None,
    ) -> Decision:
        """Change what is given. ``Conflict`` if the decision is not at ``expected_version`` any more."""
        with self._database.write() as session:
            row = _for_change(session, decision_id)
            if row.version != expected_version:
                raise Conflict(
                    f"somebody else changed decision {row.number} meanwhile (version {row.version}, you read version "
                    f"{expected_version}): read it again and repeat the change"
                )
            _fill(row, title, status, context, drivers, options, outcome, consequences)
            if evidence is not None:
                _replace_evidence(session, row.id, evidence)
            row.version += 1
            row.updated_at = self._database.now(session)
            session.flush()
            return _decision(session, row)

    def get(self, decision_id: int) -> Decision:
        """One decision, or ``NotFound``."""
        with self._database.read() as session:
            return _decision(session, get_row(session, DecisionRow, decision_id, "decision"))

    def list(
        self, *, status: str | None = None, revision_id: int | None = None, result_id: int | None = None
    ) -> tuple[Decision, ...]:
        """Decisions by number; only those that rest on a revision or a result, if one is named."""
        chosen = sa.select(DecisionRow).order_by(DecisionRow.number)
        if status is not None:
            chosen = chosen.where(DecisionRow.status == status)
        for column, reference in ((EvidenceRow.revision_id, revision_id), (EvidenceRow.result_id, result_id)):
            if reference is not None:
                chosen = chosen.where(DecisionRow.id.in_(sa.select(EvidenceRow.decision_id).where(column == reference)))
        with self._database.read() as session:
            return tuple(_decision(session, row) for row in session.scalars(chosen).all())

    def supersede(self, decision_id: int, by: int) -> Decision:
        """Mark a decision as replaced by another; the replaced one comes back."""
        if decision_id == by:
            raise InvalidRecord("a decision cannot supersede itself")
        with self._database.write() as session:
            row = _for_change(session, decision_id)
            get_row(session, DecisionRow, by, "decision")
            row.status = DecisionStatus.SUPERSEDED
            row.superseded_by = by
            row.version += 1
            row.updated_at = self._database.now(session)
            session.flush()
            return _decision(session, row)


def _for_change(session: Session, decision_id: int) -> DecisionRow:
    chosen = sa.select(DecisionRow).where(DecisionRow.id == decision_id).with_for_update()
    return require(session.scalars(chosen).first(), "decision", decision_id)


def _fill(
    row: DecisionRow,
    title: str | None,
    status: str | None,
    context: str | None,
    drivers: Sequence[str] | None,
    options: Sequence[Option] | None,
    outcome: str | None,
    consequences: str | None,
) -> None:
    if title is not None:
        row.title = clean_name(title, "decision")
    if status is not None:
        known = [member.value for member in DecisionStatus]
        if status not in known:
            raise InvalidRecord(f"a decision's status is one of {', '.join(known)}, not {status!r}")
        row.status = str(status)
    if context is not None:
        row.context = clean_text(context)
    if drivers is not None:
        row.drivers = list(drivers)
    if options is not None:
        row.options = [dataclasses.asdict(option) for option in options]
    if outcome is not None:
        row.outcome = clean_text(outcome)
    if consequences is not None:
        row.consequences = clean_text(consequences)


def _replace_evidence(session: Session, decision_id: int, evidence: Sequence[Evidence]) -> None:
    session.execute(sa.delete(EvidenceRow).where(EvidenceRow.decision_id == decision_id))
    for position, item in enumerate(evidence):
        table = {"revision": RevisionRow, "result": ResultRow}.get(item.kind)
        if table is None:
            raise InvalidRecord(f"evidence points at a 'revision' or a 'result', not at a {item.kind!r}")
        get_row(session, table, item.reference_id, item.kind)
        session.add(
            EvidenceRow(
                decision_id=decision_id,
                position=position,
                revision_id=item.reference_id if item.kind == "revision" else None,
                result_id=item.reference_id if item.kind == "result" else None,
                quantity=clean_text(item.quantity),
                value=item.value,
                unit=clean_text(item.unit),
                label=clean_text(item.label),
            )
        )
    session.flush()


def _decision(session: Session, row: DecisionRow) -> Decision:
    chosen = sa.select(EvidenceRow).where(EvidenceRow.decision_id == row.id).order_by(EvidenceRow.position)
    return Decision(
        id=row.id,
        number=row.number,
        title=row.title,
        status=DecisionStatus(row.status),
        context=row.context,
        drivers=tuple(row.drivers),
        options=tuple(Option(item["title"], tuple(item["good"]), tuple(item["bad"])) for item in row.options),
        outcome=row.outcome,
        consequences=row.consequences,
        evidence=tuple(_evidence(item) for item in session.scalars(chosen)),
        superseded_by=row.superseded_by,
        version=row.version,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


def _evidence(row: EvidenceRow) -> Evidence:
    kind, reference = ("revision", row.revision_id) if row.result_id is None else ("result", row.result_id)
    assert reference is not None
    return Evidence(kind, reference, row.quantity, row.value, row.unit, row.label)
