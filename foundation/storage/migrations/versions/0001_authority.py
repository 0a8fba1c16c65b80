"""The authority's tables; `pki/tables.py` says what they mean."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_PARTS = ("policy", "revocations", "postures", "inventory", "deadlines", "crls")


def upgrade() -> None:
    op.create_table(
        "answers",
        sa.Column("answer_key", sa.LargeBinary(length=32), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("answer_key", name=op.f("pk_answers")),
    )
    op.create_index(op.f("ix_answers_expires_at"), "answers", ["expires_at"], unique=False)
    op.create_table(
        "authority_facts",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("value", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_authority_facts")),
    )
    op.create_table(
        "certificates",
        sa.Column("serial", sa.String(length=40), nullable=False),
        sa.Column("identity", sa.String(length=400), nullable=False),
        sa.Column("profile", sa.String(length=16), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("tbs", sa.LargeBinary(), nullable=False),
        sa.Column("certificate", sa.LargeBinary(), nullable=True),
        sa.Column("not_before", sa.BigInteger(), nullable=False),
        sa.Column("not_after", sa.BigInteger(), nullable=False),
        sa.Column("reserved_at", sa.Float(), nullable=False),
        sa.Column("issued_at", sa.Float(), server_default=sa.text("0"), nullable=False),
        sa.PrimaryKeyConstraint("serial", name=op.f("pk_certificates")),
    )
    op.create_index(op.f("ix_certificates_identity_not_after"), "certificates", ["identity", "not_after"], unique=False)
    op.create_index(op.f("ix_certificates_state_reserved_at"), "certificates", ["state", "reserved_at"], unique=False)
    op.create_table(
        "identities",
        sa.Column("id", sa.String(length=400), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("roles", sa.JSON(), nullable=False),
        sa.Column("tier", sa.Integer(), nullable=False),
        sa.Column("region", sa.String(length=63), nullable=False),
        sa.Column("site", sa.String(length=63), nullable=False),
        sa.Column("segment", sa.String(length=63), nullable=False),
        sa.Column("labels", sa.JSON(), nullable=False),
        sa.Column("versions", sa.JSON(), nullable=False),
        sa.Column("ek_sha256", sa.LargeBinary(length=32), nullable=True),
        sa.Column("ak_public", sa.LargeBinary(), nullable=False),
        sa.Column("ak_name", sa.LargeBinary(), nullable=False),
        sa.Column("attestation", sa.String(length=16), nullable=False),
        sa.Column("verdict", sa.String(length=16), nullable=False),
        sa.Column("latched", sa.String(length=64), nullable=False),
        sa.Column("attested_until", sa.Float(), nullable=False),
        sa.Column("tpm_reset", sa.BigInteger(), nullable=True),
        sa.Column("tpm_restart", sa.BigInteger(), nullable=True),
        sa.Column("tpm_clock", sa.BigInteger(), nullable=True),
        sa.Column("current_serial", sa.String(length=40), nullable=False),
        sa.Column("inventory_number", sa.BigInteger(), nullable=False),
        sa.Column("posture_number", sa.BigInteger(), nullable=False),
        sa.Column("deadline_number", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("updated_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_identities")),
        sa.UniqueConstraint("ek_sha256", name=op.f("uq_identities_ek_sha256")),
    )
    op.create_index(op.f("ix_identities_deadline_number"), "identities", ["deadline_number"], unique=False)
    op.create_index(op.f("ix_identities_inventory_number"), "identities", ["inventory_number"], unique=False)
    op.create_table(
        "numbers",
        sa.Column("part", sa.String(length=16), nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("part", name=op.f("pk_numbers")),
    )
    op.create_table(
        "policies",
        sa.Column("revision", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("bundle", sa.LargeBinary(), nullable=False),
        sa.Column("sha256", sa.LargeBinary(length=32), nullable=False),
        sa.Column("published_by", sa.String(length=400), nullable=False),
        sa.Column("published_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("revision", name=op.f("pk_policies")),
    )
    op.create_table(
        "revocations",
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("identity", sa.String(length=400), nullable=False),
        sa.Column("serial", sa.String(length=40), nullable=False),
        sa.Column("reason", sa.String(length=32), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("not_after", sa.BigInteger(), nullable=False),
        sa.Column("lifted_at", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_revocations")),
    )
    op.create_index(op.f("ix_revocations_identity"), "revocations", ["identity"], unique=False)
    op.create_index(op.f("ix_revocations_serial"), "revocations", ["serial"], unique=False)
    op.create_table(
        "tokens",
        sa.Column("token_id", sa.LargeBinary(length=16), nullable=False),
        sa.Column("secret_sha256", sa.LargeBinary(length=32), nullable=False),
        sa.Column("identity", sa.String(length=400), nullable=False),
        sa.Column("minted_by", sa.String(length=400), nullable=False),
        sa.Column("minted_at", sa.Float(), nullable=False),
        sa.Column("expires_at", sa.Float(), nullable=False),
        sa.Column("bound_to", sa.LargeBinary(length=32), nullable=True),
        sa.Column("spent_on", sa.String(length=40), nullable=True),
        sa.Column("voided", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.PrimaryKeyConstraint("token_id", name=op.f("pk_tokens")),
    )
    op.create_index(op.f("ix_tokens_identity"), "tokens", ["identity"], unique=False)
    counters = sa.table("numbers", sa.column("part", sa.String), sa.column("value", sa.BigInteger))
    op.bulk_insert(counters, [{"part": part, "value": 0} for part in _PARTS])


def downgrade() -> None:
    op.drop_table("tokens")
    op.drop_table("revocations")
    op.drop_table("policies")
    op.drop_table("numbers")
    op.drop_table("identities")
    op.drop_table("certificates")
    op.drop_table("authority_facts")
    op.drop_table("answers")
