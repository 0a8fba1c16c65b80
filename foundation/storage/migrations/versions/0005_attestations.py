"""How far each identity's continuous re-attestation has come."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "attestations",
        sa.Column("identity", sa.String(length=400), nullable=False),
        sa.Column("nonce", sa.LargeBinary(length=32), nullable=False),
        sa.Column("issued_at", sa.Float(), nullable=False),
        sa.Column("used_nonce", sa.LargeBinary(length=32), nullable=False),
        sa.Column("used_issued_at", sa.Float(), nullable=False),
        sa.Column("boot", sa.LargeBinary(length=32), nullable=False),
        sa.Column("measured", sa.BigInteger(), nullable=False),
        sa.Column("measured_pcr", sa.LargeBinary(length=64), nullable=False),
        sa.PrimaryKeyConstraint("identity", name=op.f("pk_attestations")),
    )


def downgrade() -> None:
    op.drop_table("attestations")
