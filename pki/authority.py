"""The certificate authority: leads its parts and owns nothing itself.

| part | what it does |
|---|---|
| `inventory` | who belongs to the fleet, and what attestation proved of them |
| `rounds` | continuous re-attestation: nonces, and deadlines that move |
| `tokens` | one-time admissions |
| `ledger` | every certificate, and the answers that may be asked for again |
| `operators` | operators' certificates, issued and renewed |
| `revocations` | trust withdrawn; the CRL |
| `feed` | all of it as numbered changes, for gateways to follow |
| `presence` | which gateways follow, and how far each has come |

Every change goes through `pki.books`: audited before its commit, announced after it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from sqlalchemy import insert, select, update

from foundation.clock import Clock
from foundation.faults import Fault
from foundation.identifiers import Kind
from foundation.identity import PolicyPublished, State
from foundation.ports import AuditEvent, AuditLog
from foundation.reasons import Reason
from foundation.storage.database import Database
from foundation.wire.changes import MAX_BUNDLE_BYTES
from pki.books import Books, Part, Work, read_numbers
from pki.feed import RESTORE_SHIFT, Feed
from pki.inventory import Filter, Inventory
from pki.issue import IssuedCertificate, IssueRequest, Issuing
from pki.ledger import Ledger
from pki.node_bundles import NodeBundles
from pki.node_health import NodeHealth
from pki.node_records import NodeRecords
from pki.operators import Operators
from pki.presence import Behind, Presence
from pki.profile import Lifetimes
from pki.revocation import Revocations
from pki.rounds import Rounds
from pki.settings import AuthoritySettings
from pki.signer import FileSigner, Signer, check_issued
from pki.tables import authority_facts, identities, numbers, policies
from pki.tokens import Tokens, void_tokens

_ISSUING = "issuing_sha256"  # the fact which of the issuing CA's certificates is used
_EPOCH_STEP = 1 << 32  # between the epochs of one restore and those of the next
MAX_GATEWAYS = 1000
MAX_NAMED = 32  # of them, in one event of the audit log
_RAISED = (Part.REVOCATIONS, Part.POSTURES, Part.INVENTORY)


@dataclass(frozen=True, slots=True)
class Reach:
    """How far the revocations up to `number` have come: how many gateways have them in force, and which do not."""

    number: int
    acknowledged: int
    behind: tuple[Behind, ...]


@dataclass(frozen=True, slots=True)
class Ca:
    """The CA's certificates and its signer."""

    root: x509.Certificate
    signer: Signer

    @property
    def root_der(self) -> bytes:
        return self.root.public_bytes(serialization.Encoding.DER)

    @property
    def root_sha256(self) -> bytes:
        return hashlib.sha256(self.root_der).digest()

    @property
    def issuing_der(self) -> bytes:
        return self.signer.certificate.public_bytes(serialization.Encoding.DER)


class Authority:
    """One authority over one database. Several processes may each have one over the same database."""

    def __init__(
        self,
        ca: Ca,
        lifetimes: Lifetimes,
        database: Database,
        audit: AuditLog,
        clock: Clock,
        acknowledge_within: float = 1.0,
    ) -> None:
        self.feed = Feed(database, clock)
        self.presence = Presence(clock)
        self._audit = audit
        self._acknowledge_within = acknowledge_within
        self._books = Books(database, audit, clock, self.feed.announce)
        self._ca = ca
        self._issuing = Issuing(self._books, ca.signer, ca.root, lifetimes)
        self.inventory = Inventory(self._books)
        self.rounds = Rounds(self._books)
        self.tokens = Tokens(self._books, ca.root_sha256)
        self.ledger = Ledger(self._books)
        self.operators = Operators(self._books, self._issuing, self.inventory, self.ledger)
        self.revocations = Revocations(self._books, ca.signer)
        self.bundles = NodeBundles(self._books)
        self.node_records = NodeRecords(self._books)
        self.node_health = NodeHealth(self._books)

    @classmethod
    async def open(cls, settings: AuthoritySettings, database: Database, audit: AuditLog, clock: Clock) -> Authority:
        """The authority that `pki.bootstrap.initialise` made, its database migrated and tidied. Raises
        `Fault(FILE_UNREADABLE | FILE_MODE_UNSAFE | SIGNER_FAILED | STORAGE_FAILED)`."""
        await database.migrate()
        authority = cls(load_ca(settings), settings.lifetimes, database, audit, clock, settings.acknowledge_within)
        await authority._note_issuing()
        await authority.ledger.tidy()
        return authority

    @property
    def root_sha256(self) -> bytes:
        """The SHA-256 of the root's DER: what tokens carry and `init` prints."""
        return self._ca.root_sha256

    @property
    def chain(self) -> tuple[bytes, ...]:
        """Issuing CA and root, each DER: what stands above every leaf."""
        return (self._ca.issuing_der, self._ca.root_der)

    async def issue(self, request: IssueRequest) -> IssuedCertificate:
        """Issue one certificate; see `pki.issue.Issuing.issue`."""
        return await self._issuing.issue(request)

    async def publish_policy(self, revision: int, bundle: bytes, actor: str) -> None:
        """Have a signed revision enforced everywhere. Its signature is for the publisher and every gateway to check:
        here it is bytes with a number. Raises `Fault(REVISION_DOWNGRADE)` when the number does not rise, and
        `Fault(MESSAGE_TOO_LARGE)`."""
        if len(bundle) > MAX_BUNDLE_BYTES:
            raise Fault(Reason.MESSAGE_TOO_LARGE, f"a bundle has at most {MAX_BUNDLE_BYTES} bytes", field="bundle")
        async with self._books.writing() as work:
            digest = hashlib.sha256(bundle).digest()
            work.tell("policy.published", actor, f"revision {revision}", sha256=digest.hex())
            rise = update(numbers).where(numbers.c.part == Part.POLICY.value, numbers.c.value < revision)
            if (await work.connection.execute(rise.values(value=revision))).rowcount != 1:
                raise Fault(Reason.REVISION_DOWNGRADE, field="revision")
            work.moves = True
            row = {"revision": revision, "bundle": bundle, "sha256": digest}
            row |= {"published_by": actor, "published_at": work.now}
            await work.connection.execute(insert(policies).values(row))

    async def policy(self, revision: int = 0) -> PolicyPublished:
        """A published revision, 0 for the one in force. Raises `Fault(REVISION_MISSING)`."""
        async with self._books.reading() as connection:
            wanted = revision or (await read_numbers(connection))[Part.POLICY]
            row = (await connection.execute(select(policies).where(policies.c.revision == wanted))).first()
        if row is None:
            raise Fault(Reason.REVISION_MISSING, field="revision")
        return PolicyPublished(row.revision, row.bundle)

    async def wait_in_force(self, number: int, actor: str) -> Reach:
        """Who has the revocations up to `number` in force, once every gateway that follows says so, or after a while.
        That some have not is on the audit log."""
        entries = await self.inventory.page(Filter(kind=Kind.GATEWAY, state=State.ACTIVE), limit=MAX_GATEWAYS)
        gateways = tuple(dict.fromkeys((*self.presence.here, *(entry.record.id for entry in entries))))
        behind = await self.presence.wait(number, gateways, self._acknowledge_within)
        if behind:
            named = [str(each.gateway) for each in behind[:MAX_NAMED]]
            detail = {"number": number, "count": len(behind), "gateways": named}
            await self._audit.append(AuditEvent("revocation.unacknowledged", actor, "gateways", detail=detail))
        return Reach(number, len(gateways) - len(behind), behind)

    async def _note_issuing(self) -> None:
        """Have it on record when another certificate of the issuing CA than the one before is used from now on."""
        issuing = self._ca.signer.certificate
        digest = hashlib.sha256(self._ca.issuing_der).digest()
        known = select(authority_facts.c.value).where(authority_facts.c.name == _ISSUING)
        async with self._books.writing() as work:
            before = await work.connection.scalar(known)
            if before == digest:
                return
            serial, until = format(issuing.serial_number, "x"), int(issuing.not_valid_after_utc.timestamp())
            work.tell(
                "authority.issuing", "authority", "issuing CA", serial=serial, not_after=until, sha256=digest.hex()
            )
            row = {"name": _ISSUING, "value": digest}
            if before is None:
                await work.connection.execute(insert(authority_facts), row)
            else:
                fact = update(authority_facts).where(authority_facts.c.name == _ISSUING)
                await work.connection.execute(fact.values(value=digest))

    async def raise_numbers(self, actor: str) -> None:
        """After a backup was restored, before anything else: no number or epoch that was given out since the backup can
        come again, every follower begins anew, and all tokens are void. Then `revocations.merge` what the backup does
        not know. The policy's revision stays, for its number is signed."""
        async with self._books.writing() as work:
            work.tell("authority.restored", actor, "authority")
            found = await read_numbers(work.connection)
            for part in _RAISED:
                await _set_number(work, part, ((found[part] >> RESTORE_SHIFT) + 1) << RESTORE_SHIFT)
            epochs = (identities.c.epoch // _EPOCH_STEP + 1) * _EPOCH_STEP
            await work.connection.execute(update(identities).values(epoch=epochs))
            await void_tokens(work, actor)


def load_ca(settings: AuthoritySettings) -> Ca:
    """The CA in the settings' folder. Raises `Fault(FILE_UNREADABLE | FILE_MODE_UNSAFE | SIGNER_FAILED)`, the last also
    for an issuing CA that the root did not sign."""
    root = x509.load_pem_x509_certificate(_read(settings.folder / "root.pem"))
    key = _read(settings.folder / "issuing.key")
    signer = FileSigner.load(_read(settings.folder / "issuing.pem"), key, settings.read_passphrase())
    check_issued(signer.certificate, root)
    return Ca(root, signer)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Fault(Reason.FILE_UNREADABLE, error.strerror or "unreadable", field=str(path)) from error


async def _set_number(work: Work, part: Part, value: int) -> None:
    work.moves = True
    await work.connection.execute(update(numbers).where(numbers.c.part == part.value).values(value=value))
