"""Hashes of revisions leave out fields at their defaults, so that a new field changes no stored design's hash.

Rows were hashed with every field that the specification had when they were saved; they are hashed anew, once. What a
row says stays as it was, and the guard that keeps it so stands again afterwards. A specification that the planner does
not read any more keeps the hash that it has.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from db.models import JsonText
from planner.errors import PlannerError
from planner.spec import parse_spec

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

REVISIONS = sa.table(
    "revision", sa.column("id", sa.Integer), sa.column("spec", JsonText), sa.column("content_hash", sa.Text)
)


def upgrade() -> None:
    connection = op.get_bind()
    guard = _without_guard(connection)
    for row in connection.execute(sa.select(REVISIONS)).all():
        try:
            found = parse_spec(row.spec).content_hash()
        except PlannerError:
            continue
        if found != row.content_hash:
            connection.execute(REVISIONS.update().where(REVISIONS.c.id == row.id).values(content_hash=found))
    op.execute(guard)


def _without_guard(connection: sa.Connection) -> str:
    """Let revisions be changed; the statement that forbids it again."""
    if connection.dialect.name == "sqlite":
        name = "revision_refuse_update"
        written = connection.scalar(sa.text("SELECT sql FROM sqlite_master WHERE type = 'trigger' AND name = :name"),
                                    {"name": name})  # fmt: skip
        op.execute(f"DROP TRIGGER {name}")
        return str(written)
    op.execute("ALTER TABLE revision DISABLE TRIGGER revision_refuse_change")
    return "ALTER TABLE revision ENABLE TRIGGER revision_refuse_change"


def downgrade() -> None:
    raise NotImplementedError("Plumbline's migrations go forward only: restore a backup")
