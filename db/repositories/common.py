"""What the repositories share: checks of what people type, and conditional writes."""

from __future__ import annotations

from typing import Any, TypeVar

from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from db.errors import InvalidRecord, NotFound
from db.models import Base

MAX_NAME_LENGTH = 200
Row = TypeVar("Row", bound=Base)


def clean_text(text: str) -> str:
    """Text that both databases take: PostgreSQL refuses NUL, UTF-8 refuses lone surrogates."""
    return text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode("utf-8")


def clean_name(name: str, what: str) -> str:
    """A name without surrounding space, or ``InvalidRecord``."""
    cleaned = clean_text(name).strip()
    if not cleaned:
        raise InvalidRecord(f"a {what} needs a name")
    if len(cleaned) > MAX_NAME_LENGTH:
        raise InvalidRecord(f"the name of a {what} has at most {MAX_NAME_LENGTH} characters, not {len(cleaned)}")
    return cleaned


def require(row: Row | None, what: str, identifier: object) -> Row:
    """The row, or ``NotFound``."""
    if row is None:
        raise NotFound(f"there is no {what} {identifier}")
    return row


LARGEST_ID = 2**31 - 1
"""PostgreSQL's integers are the narrower ones."""


def get_row(session: Session, table: type[Row], identifier: int | str, what: str) -> Row:
    """The row with that id, or ``NotFound``, also of what can be no id: an address may say anything."""
    impossible = "\x00" in identifier if isinstance(identifier, str) else abs(identifier) > LARGEST_ID
    return require(None if impossible else session.get(table, identifier), what, identifier)


def insert(session: Session, table: type[Base]) -> Any:
    """An INSERT that can say ON CONFLICT, in the session's dialect."""
    dialect = session.get_bind().dialect.name
    return postgresql.insert(table) if dialect == "postgresql" else sqlite.insert(table)
