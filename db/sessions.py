"""Transactions on SQLite and PostgreSQL, and the one clock that leases are measured by."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.orm import Session

from db.errors import StoreUnavailable

BUSY_TIMEOUT_MILLISECONDS = 15_000


class Database:
    """Opens sessions: ``read()`` for looking, ``write()`` for changing.

    On SQLite a writing transaction begins with BEGIN IMMEDIATE. A transaction that begins by reading and then writes
    is refused at once when another wrote in between, whatever the busy timeout
    (https://www.sqlite.org/isolation.html, "BEGIN IMMEDIATE").
    """

    def __init__(self, url: sa.URL) -> None:
        self.url = url
        self.dialect = url.get_backend_name()
        options: dict[str, Any] = {"pool_pre_ping": True} if self.dialect == "postgresql" else {}
        self.engine = sa.create_engine(url, **options)
        if self.dialect == "sqlite":
            sa.event.listen(self.engine, "connect", _prepare_sqlite)
            sa.event.listen(self.engine, "begin", _begin_sqlite)
        self._writer = self.engine.execution_options(plumbline_write=True)

    @property
    def shown_url(self) -> str:
        """The URL without its password."""
        return self.url.render_as_string(hide_password=True)

    @contextlib.contextmanager
    def read(self) -> Iterator[Session]:
        """A session that sees one consistent state."""
        with self._unavailable(), Session(self.engine) as session, session.begin():
            yield session

    @contextlib.contextmanager
    def write(self) -> Iterator[Session]:
        """A session that commits at the end, or leaves no trace if an exception passes."""
        with self._unavailable(), Session(self._writer) as session, session.begin():
            yield session

    @contextlib.contextmanager
    def connection(self) -> Iterator[sa.Connection]:
        """A writing transaction below the ORM, for migrations."""
        with self._unavailable(), self._writer.begin() as connection:
            yield connection

    def now(self, session: Session) -> datetime.datetime:
        """The database's clock: workers on several machines share it, so that a skewed clock breaks no lease."""
        if self.dialect == "postgresql":
            moment: datetime.datetime | None = session.scalar(sa.select(sa.func.clock_timestamp()))
            assert moment is not None
            return moment.astimezone(datetime.UTC)
        return datetime.datetime.now(datetime.UTC)

    def close(self) -> None:
        """Give all connections back."""
        self.engine.dispose()

    @contextlib.contextmanager
    def _unavailable(self) -> Iterator[None]:
        try:
            yield
        except (exc.OperationalError, exc.InterfaceError, exc.TimeoutError) as error:
            reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
            raise StoreUnavailable(f"the database {self.shown_url} does not answer: {reason}") from error


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # transactions begin where _begin_sqlite says, not where the driver guesses
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MILLISECONDS}")
    if cursor.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    write = connection.get_execution_options().get("plumbline_write")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
