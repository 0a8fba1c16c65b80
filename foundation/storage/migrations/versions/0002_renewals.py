"""What an identity's current certificate renewed, so that gateways may let what is open go on."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("identities", sa.Column("renewed_serial", sa.String(length=40), nullable=False, server_default=""))
    op.add_column(
        "identities", sa.Column("renewed_until", sa.BigInteger(), nullable=False, server_default=sa.text("0"))
    )


def downgrade() -> None:
    op.drop_column("identities", "renewed_until")
    op.drop_column("identities", "renewed_serial")
