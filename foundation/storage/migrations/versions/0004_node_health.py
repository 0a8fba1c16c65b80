"""The newest report that each node gave of its own health."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "node_health",
        sa.Column("node", sa.String(length=400), nullable=False),
        sa.Column("report", sa.LargeBinary(), nullable=False),
        sa.Column("ails", sa.Integer(), nullable=False),
        sa.Column("received_at", sa.Float(), nullable=False),
        sa.Column("due_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("node", name=op.f("pk_node_health")),
    )


def downgrade() -> None:
    op.drop_table("node_health")
