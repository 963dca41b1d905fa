"""Tokens of the texts that jobs write, as they stream."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from db.models import JsonText

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "token",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("text", sa.Integer(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("said", JsonText(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "text", "position", name="pk_token"),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name="fk_token_job_id"),
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    raise NotImplementedError("Plumbline's migrations go forward only: restore a backup")
