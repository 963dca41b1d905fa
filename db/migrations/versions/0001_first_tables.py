"""The first tables, and the guards that keep revisions and measurements as they were."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from db.models import JsonText, UtcDateTime

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# table → the columns that may change; every other change, and every removal, is refused by the database itself
GUARDED = {"revision": (), "result": ("name", "archived")}


def upgrade() -> None:
    op.create_table(
        "design",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("archived", sa.Boolean(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("updated_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_design"),
    )
    op.create_table(
        "revision",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("design_id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("spec", JsonText(), nullable=False),
        sa.Column("content_hash", sa.Text(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_revision"),
        sa.ForeignKeyConstraint(["design_id"], ["design.id"], name="fk_revision_design_id"),
        sa.UniqueConstraint("design_id", "number", name="uq_revision_design_id_number"),
    )
    op.create_index("ix_revision_content_hash", "revision", ["content_hash"])
    op.create_table(
        "job",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("revision_id", sa.Integer(), nullable=False),
        sa.Column("plan", JsonText(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("takeovers", sa.Integer(), nullable=False),
        sa.Column("worker_id", sa.Text(), nullable=True),
        sa.Column("lease_until", UtcDateTime(), nullable=True),
        sa.Column("cancel_requested", sa.Boolean(), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("progress", JsonText(), nullable=True),
        sa.Column("event_count", sa.BigInteger(), nullable=False),
        sa.Column("archived", sa.Boolean(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("started_at", UtcDateTime(), nullable=True),
        sa.Column("finished_at", UtcDateTime(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_job"),
        sa.ForeignKeyConstraint(["revision_id"], ["revision.id"], name="fk_job_revision_id"),
        sa.CheckConstraint(
            "state IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')", name=op.f("ck_job_state")
        ),
    )
    op.create_index("ix_job_revision_id", "job", ["revision_id"])
    op.create_index("ix_job_state_created_at", "job", ["state", "created_at"])
    op.create_table(
        "metric",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("value", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("job_id", "name", "step", name="pk_metric"),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name="fk_metric_job_id"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "log",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("level", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "sequence", name="pk_log"),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name="fk_log_job_id"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "artifact",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("media_type", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "name", name="pk_artifact"),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name="fk_artifact_job_id"),
    )
    op.create_table(
        "result",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("revision_id", sa.Integer(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("measured", JsonText(), nullable=False),
        sa.Column("environment", JsonText(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("archived", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_result"),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name="fk_result_job_id"),
        sa.ForeignKeyConstraint(["revision_id"], ["revision.id"], name="fk_result_revision_id"),
        sa.UniqueConstraint("job_id", "kind", name="uq_result_job_id_kind"),
    )
    op.create_index("ix_result_revision_id", "result", ["revision_id"])
    op.create_table(
        "decision",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("context", sa.Text(), nullable=False),
        sa.Column("drivers", JsonText(), nullable=False),
        sa.Column("options", JsonText(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("consequences", sa.Text(), nullable=False),
        sa.Column("superseded_by", sa.Integer(), nullable=True),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("updated_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_decision"),
        sa.ForeignKeyConstraint(["superseded_by"], ["decision.id"], name="fk_decision_superseded_by"),
        sa.UniqueConstraint("number", name="uq_decision_number"),
        sa.CheckConstraint(
            "status IN ('proposed', 'accepted', 'rejected', 'deprecated', 'superseded')",
            name=op.f("ck_decision_status"),
        ),
    )
    op.create_table(
        "evidence",
        sa.Column("decision_id", sa.Integer(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("revision_id", sa.Integer(), nullable=True),
        sa.Column("result_id", sa.Integer(), nullable=True),
        sa.Column("quantity", sa.Text(), nullable=False),
        sa.Column("value", JsonText(), nullable=False),
        sa.Column("unit", sa.Text(), nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("decision_id", "position", name="pk_evidence"),
        sa.ForeignKeyConstraint(["decision_id"], ["decision.id"], name="fk_evidence_decision_id"),
        sa.ForeignKeyConstraint(["revision_id"], ["revision.id"], name="fk_evidence_revision_id"),
        sa.ForeignKeyConstraint(["result_id"], ["result.id"], name="fk_evidence_result_id"),
        sa.CheckConstraint("(revision_id IS NULL) <> (result_id IS NULL)", name=op.f("ck_evidence_one_reference")),
    )
    op.create_index("ix_evidence_revision_id", "evidence", ["revision_id"])
    op.create_index("ix_evidence_result_id", "evidence", ["result_id"])
    op.create_table(
        "worker",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("started_at", UtcDateTime(), nullable=False),
        sa.Column("beat_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_worker"),
    )
    for table, changeable in GUARDED.items():
        _guard(table, changeable)


def _guard(table: str, changeable: tuple[str, ...]) -> None:
    columns = [column["name"] for column in sa.inspect(op.get_bind()).get_columns(table)]
    kept = ", ".join(column for column in columns if column not in changeable)
    message = f"a stored {table} does not change"
    if op.get_bind().dialect.name == "sqlite":
        for name, event in (("update", f"UPDATE OF {kept}"), ("delete", "DELETE")):
            op.execute(
                f"CREATE TRIGGER {table}_refuse_{name} BEFORE {event} ON {table} "
                f"BEGIN SELECT RAISE(ABORT, '{message}'); END"
            )
        return
    op.execute(
        f"CREATE FUNCTION {table}_refuse() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION '{message}' USING ERRCODE = 'integrity_constraint_violation'; END $$"
    )
    op.execute(
        f"CREATE TRIGGER {table}_refuse_change BEFORE UPDATE OF {kept} OR DELETE ON {table} "
        f"FOR EACH ROW EXECUTE FUNCTION {table}_refuse()"
    )


def downgrade() -> None:
    raise NotImplementedError("Plumbline's migrations go forward only: restore a backup")
