"""The authority's rows. `foundation/storage/migrations/versions/0001_authority.py` makes them.

Laws held here:
- a certificate's row stands before its signature does, and is never deleted;
- `numbers` has one row for each part of the snapshot: every change takes the next number in its own transaction, and
  with one writer at a time the order of numbers is the order of commits;
- times are seconds since the Unix epoch.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    String,
    Table,
    UniqueConstraint,
    text,
)

from foundation.storage.database import metadata

SERIAL_LENGTH = 40  # hex digits of 20 octets (RFC 5280 §4.1.2.2)
_ID_LENGTH = 400
_NEVER = text("0")

numbers = Table(
    "numbers",
    metadata,
    Column("part", String(16), primary_key=True),
    Column("value", BigInteger, nullable=False),
)

# What `init` made: public values by name.
authority_facts = Table(
    "authority_facts",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("value", LargeBinary, nullable=False),
)

identities = Table(
    "identities",
    metadata,
    Column("id", String(_ID_LENGTH), primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("state", String(16), nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("roles", JSON, nullable=False),
    Column("tier", Integer, nullable=False),
    Column("region", String(63), nullable=False),
    Column("site", String(63), nullable=False),
    Column("segment", String(63), nullable=False),
    Column("labels", JSON, nullable=False),
    Column("versions", JSON, nullable=False),
    Column("ek_sha256", LargeBinary(32), nullable=True, unique=True),
    Column("ak_public", LargeBinary, nullable=False),
    Column("ak_name", LargeBinary, nullable=False),
    Column("attestation", String(16), nullable=False),
    Column("verdict", String(16), nullable=False),
    Column("latched", String(64), nullable=False),  # the code of the failure that an operator has to clear
    Column("attested_until", Float, nullable=False),
    Column("tpm_reset", BigInteger, nullable=True),
    Column("tpm_restart", BigInteger, nullable=True),
    Column("tpm_clock", BigInteger, nullable=True),
    Column("current_serial", String(SERIAL_LENGTH), nullable=False),
    # Where the current certificate is a renewal by the AK on record: what it renewed, and when it ends.
    Column("renewed_serial", String(SERIAL_LENGTH), nullable=False, server_default=""),
    Column("renewed_until", BigInteger, nullable=False, server_default=_NEVER),
    Column("inventory_number", BigInteger, nullable=False, index=True),
    Column("posture_number", BigInteger, nullable=False),
    Column("deadline_number", BigInteger, nullable=False, index=True),
    Column("created_at", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
)

# How far the rounds of continuous re-attestation have come, of identities that have begun them.
attestations = Table(
    "attestations",
    metadata,
    Column("identity", String(_ID_LENGTH), primary_key=True),
    Column("nonce", LargeBinary(32), nullable=False),  # for the next quote
    Column("issued_at", Float, nullable=False),
    Column("used_nonce", LargeBinary(32), nullable=False),  # of the last quote that passed; empty before the first
    Column("used_issued_at", Float, nullable=False),
    Column("boot", LargeBinary(32), nullable=False),  # what was accepted of the firmware's PCRs, and by which values
    Column("measured", BigInteger, nullable=False),  # entries of the runtime log
    Column("measured_pcr", LargeBinary(64), nullable=False),  # PCR 10 after them
)

certificates = Table(
    "certificates",
    metadata,
    Column("serial", String(SERIAL_LENGTH), primary_key=True),
    Column("identity", String(_ID_LENGTH), nullable=False),
    Column("profile", String(16), nullable=False),
    Column("state", String(16), nullable=False),
    Column("tbs", LargeBinary, nullable=False),  # exactly the bytes that the CA's key signs
    Column("certificate", LargeBinary, nullable=True),
    Column("not_before", BigInteger, nullable=False),
    Column("not_after", BigInteger, nullable=False),
    Column("reserved_at", Float, nullable=False),
    Column("issued_at", Float, nullable=False, server_default=_NEVER),
    Index(None, "identity", "not_after"),
    Index(None, "state", "reserved_at"),
)

# What was answered to an enrolment's second message, by its hash, so that a lost reply costs nothing.
answers = Table(
    "answers",
    metadata,
    Column("answer_key", LargeBinary(32), primary_key=True),
    Column("body", LargeBinary, nullable=False),
    Column("expires_at", BigInteger, nullable=False, index=True),
)

tokens = Table(
    "tokens",
    metadata,
    Column("token_id", LargeBinary(16), primary_key=True),
    Column("secret_sha256", LargeBinary(32), nullable=False),
    Column("identity", String(_ID_LENGTH), nullable=False, index=True),
    Column("minted_by", String(_ID_LENGTH), nullable=False),
    Column("minted_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
    Column("bound_to", LargeBinary(32), nullable=True),
    Column("spent_on", String(SERIAL_LENGTH), nullable=True),
    Column("voided", Integer, nullable=False, server_default=_NEVER),
)

revocations = Table(
    "revocations",
    metadata,
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("identity", String(_ID_LENGTH), nullable=False, index=True),
    Column("serial", String(SERIAL_LENGTH), nullable=False),  # empty: the identity with all its certificates
    Column("reason", String(32), nullable=False),
    Column("at", Float, nullable=False),
    Column("not_after", BigInteger, nullable=False),  # of the certificate; 0 for an identity
    Column("lifted_at", Float, nullable=True),  # an identity's revocation ends when an operator admits it again
    Index(None, "serial"),
)

policies = Table(
    "policies",
    metadata,
    Column("revision", BigInteger, primary_key=True, autoincrement=False),
    Column("bundle", LargeBinary, nullable=False),
    Column("sha256", LargeBinary(32), nullable=False),
    Column("published_by", String(_ID_LENGTH), nullable=False),
    Column("published_at", Float, nullable=False),
)

# How far each node has delivered what it noted: the last number of an incarnation of its outbox, and the hash over all.
node_outboxes = Table(
    "node_outboxes",
    metadata,
    Column("node", String(_ID_LENGTH), primary_key=True),
    Column("incarnation", String(32), primary_key=True),
    Column("taken", BigInteger, nullable=False),
    Column("chain", LargeBinary(32), nullable=False),
    Column("updated_at", Float, nullable=False),
)

# What it delivered, the newest of each node, as its lines came. `number` counts those of one node, in order; `decision`
# is the ID of the decision that a record is of.
node_records = Table(
    "node_records",
    metadata,
    Column("node", String(_ID_LENGTH), primary_key=True),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("incarnation", String(32), nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("received_at", Float, nullable=False),
    Column("record", LargeBinary, nullable=False),
    Column("decision", String(30), index=True),
    UniqueConstraint("node", "incarnation", "sequence"),
)

# What each node said last of its own health. `ails` is 1 when something is wrong by it; after `due_at` it is silent.
node_health = Table(
    "node_health",
    metadata,
    Column("node", String(_ID_LENGTH), primary_key=True),
    Column("report", LargeBinary, nullable=False),
    Column("ails", Integer, nullable=False),
    Column("received_at", Float, nullable=False),
    Column("due_at", Float, nullable=False),
)
