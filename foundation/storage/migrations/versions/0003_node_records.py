"""What nodes noted while they were cut off, and how far each has delivered it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "node_outboxes",
        sa.Column("node", sa.String(length=400), nullable=False),
        sa.Column("incarnation", sa.String(length=32), nullable=False),
        sa.Column("taken", sa.BigInteger(), nullable=False),
        sa.Column("chain", sa.LargeBinary(length=32), nullable=False),
        sa.Column("updated_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("node", "incarnation", name=op.f("pk_node_outboxes")),
    )
    op.create_table(
        "node_records",
        sa.Column("node", sa.String(length=400), nullable=False),
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("incarnation", sa.String(length=32), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("received_at", sa.Float(), nullable=False),
        sa.Column("record", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("node", "number", name=op.f("pk_node_records")),
        sa.UniqueConstraint("node", "incarnation", "sequence", name=op.f("uq_node_records_node_incarnation_sequence")),
    )


def downgrade() -> None:
    op.drop_table("node_records")
    op.drop_table("node_outboxes")
