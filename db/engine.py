"""Opens the store: finds the database, brings its tables up to date, and gives the repositories."""

from __future__ import annotations

import os
import pathlib
from types import TracebackType

import sqlalchemy as sa
from sqlalchemy import exc

from db.errors import SchemaMismatch, StoreUnavailable
from db.migrations import HEAD
from db.repositories.decisions import Decisions
from db.repositories.designs import Designs
from db.repositories.jobs import Jobs
from db.repositories.results import Results
from db.repositories.workers import Workers
from db.sessions import Database
from planner.paths import data_directory

_MIGRATION_LOCK = 0x706C756D  # any number that no other program locks in the same PostgreSQL database


class Store:
    """All repositories over one database. Safe to share between threads; close it, or use it in a ``with``."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.designs = Designs(database)
        self.jobs = Jobs(database)
        self.results = Results(database)
        self.decisions = Decisions(database)
        self.workers = Workers(database)

    @property
    def shown_url(self) -> str:
        """Where the store is, without a password."""
        return self.database.shown_url

    def close(self) -> None:
        """Give the connections back."""
        self.database.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_store(url: str | None = None) -> Store:
    """Open the store, creating or upgrading its tables if need be.

    ``url`` is a SQLAlchemy URL of SQLite or PostgreSQL; by default ``PLUMBLINE_DATABASE_URL``, else the file
    ``plumbline.sqlite`` in ``PLUMBLINE_DATA_DIR``. Raises ``StoreUnavailable`` or ``SchemaMismatch``.
    """
    database = Database(resolve_url(url))
    try:
        upgrade(database)
    except BaseException:
        database.close()
        raise
    return Store(database)


def resolve_url(url: str | None = None) -> sa.URL:
    """The URL that ``open_store`` opens; SQLite's directory is made."""
    text = (url or os.environ.get("PLUMBLINE_DATABASE_URL") or "").strip()
    if text:
        try:
            parsed = sa.make_url(text)
        except exc.ArgumentError as error:
            raise StoreUnavailable(
                "PLUMBLINE_DATABASE_URL is no database URL: write postgresql://user:password@host/name "
                "or sqlite:////absolute/path.sqlite"
            ) from error
    else:
        parsed = sa.URL.create("sqlite", database=str(data_directory() / "plumbline.sqlite"))
    if parsed.drivername in ("postgres", "postgresql"):
        return parsed.set(drivername="postgresql+psycopg")
    backend = parsed.get_backend_name()
    if backend == "postgresql":
        return parsed
    if backend != "sqlite":
        raise StoreUnavailable(f"Plumbline keeps its data in SQLite or PostgreSQL, not in {backend!r}")
    if not parsed.database or parsed.database == ":memory:":
        raise StoreUnavailable("the web pages and the worker share one database, so SQLite needs a file, not memory")
    try:
        pathlib.Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreUnavailable(f"cannot make the directory of {parsed.database}: {error.strerror}") from error
    return parsed


def schema_revision(database: Database) -> str | None:
    """The migration that the database is at, or ``None`` for a new one."""
    with database.read() as session:
        connection = session.connection()
        if not sa.inspect(connection).has_table("alembic_version"):
            return None
        revision: str | None = connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
        return revision


def upgrade(database: Database) -> bool:
    """Bring the tables up to date; say whether there was anything to do. Two processes may do so at once."""
    if _is_current(schema_revision(database), database):
        return False
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(pathlib.Path(__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    with database.connection() as connection:
        if database.dialect == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
    return True


def _is_current(revision: str | None, database: Database) -> bool:
    if revision == HEAD:
        return True
    if revision is not None and not (revision.isdigit() and int(revision) < int(HEAD)):
        raise SchemaMismatch(
            f"the database {database.shown_url} has schema {revision}, and this Plumbline knows up to {HEAD}: "
            "upgrade Plumbline, or name another database in PLUMBLINE_DATABASE_URL"
        )
    return False
