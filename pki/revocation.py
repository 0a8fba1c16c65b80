"""Trust withdrawn: from a certificate, or from an identity with all its certificates.

Revocations count up without gaps. An identity's is followed by one for each of its living certificates, so that those
stay revoked when an operator admits the identity again. What gateways enforce is the feed; the CRL (RFC 5280 §5) is for
relying parties that know nothing of Sallyport.
"""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from sqlalchemy import Select, and_, bindparam, insert, or_, select, update

from foundation.faults import Fault
from foundation.identifiers import Kind, SpiffeId
from foundation.identity import CA_COMPROMISE, Revocation, State
from foundation.reasons import Reason
from foundation.storage.connection import Connection
from foundation.storage.statement import Statement
from pki.books import Books, Part, Work, read_numbers
from pki.entries import Entry
from pki.inventory import FACT, is_known, read_entry, write
from pki.ledger import read_certificate
from pki.profile import Issuer
from pki.revocation_reason import RevocationReason
from pki.signer import Draft, Signer, seal_crl
from pki.tables import certificates, revocations
from pki.tokens import void_tokens

CRL_SECONDS = 24 * 3600
_OF_SERIAL = Statement(select(revocations).where(revocations.c.serial == bindparam("wanted")))  # asked at each issuing
# Asked of every caller of the API.
_REVOKED = Statement(
    select(revocations.c.number)
    .where(
        or_(
            revocations.c.serial == bindparam("which"),
            and_(
                revocations.c.serial == "",
                revocations.c.identity == bindparam("whose"),
                revocations.c.lifted_at.is_(None),
            ),
        )
    )
    .limit(1)
)
# A revocation that was lifted keeps its place in the count, and travels under a serial that no certificate has (RFC
# 5280 §4.1.2.2: a serial is positive).
LIFTED_SERIAL = "0"


@dataclass(frozen=True, slots=True)
class _Crl:
    der: bytes
    revocations: int
    refresh_at: float


class Revocations:
    """Revoke, look up, and tell the world."""

    def __init__(self, books: Books, signer: Signer) -> None:
        self._books = books
        self._signer = signer
        self._issuer = Issuer.of(signer.certificate)
        self._draft = Draft(signer.certificate)
        self._crl: _Crl | None = None

    async def revoke_certificate(self, serial: str, reason: RevocationReason, actor: str) -> Revocation:
        """Revoke one certificate; again is no second revocation. Raises `Fault(NOT_FOUND)`."""
        async with self._books.writing() as work:
            certificate = await read_certificate(work.connection, serial)
            known = await _known(work.connection, serial)
            if known is not None:
                return known
            work.tell("certificate.revoked", actor, certificate.identity, serial=serial, why=reason.value)
            return await _revoke(work, certificate.identity, serial, reason, certificate.not_after)

    async def revoke_identity(self, identity: SpiffeId, reason: RevocationReason, actor: str) -> tuple[Revocation, ...]:
        """Revoke an identity, its living certificates and its tokens. The first of the answer is the identity's own;
        none when it was revoked already. Raises `Fault(INVENTORY_UNKNOWN)`."""
        async with self._books.writing() as work:
            entry = await read_entry(work.connection, identity)
            return await _revoke_all(work, entry, reason, actor)

    async def withdraw_issuer(self, key_identifier: str, trust_domain: str, actor: str) -> Revocation:
        """Withdraw everything that the CA of this key identifier (lower-case hex) signed; again is no second time.
        Raises `Fault(MESSAGE_MALFORMED)` for what is no key identifier."""
        if not _KEY_IDENTIFIER.fullmatch(key_identifier):
            raise Fault(Reason.MESSAGE_MALFORMED, "expected 40 lower-case hex digits", field="key_identifier")
        async with self._books.writing() as work:
            known = await _known(work.connection, key_identifier)
            if known is not None:
                return known
            nobody = SpiffeId(trust_domain, Kind.GATEWAY, "issuing-ca")
            work.tell("ca.withdrawn", actor, nobody, key_identifier=key_identifier)
            return await _revoke(work, nobody, key_identifier, CA_COMPROMISE, _UNKNOWN_END)

    async def retire(self, identity: SpiffeId, actor: str) -> tuple[Revocation, ...]:
        """Revoke an identity for good and part it from its TPM: after `admit` the name may come back with another
        board, and the board under another name. Raises `Fault(INVENTORY_UNKNOWN)`."""
        async with self._books.writing() as work:
            entry = await read_entry(work.connection, identity)
            made = await _revoke_all(work, entry, RevocationReason.CESSATION_OF_OPERATION, actor)
            work.tell("identity.retired", actor, identity, ek_sha256=entry.ek_sha256.hex())
            unbound: dict[str, Any] = {"ek_sha256": None, "ak_public": b"", "ak_name": b""}
            counters = {"tpm_reset": None, "tpm_restart": None, "tpm_clock": None}
            await write(work, await read_entry(work.connection, identity), FACT, **unbound, **counters)
            return made

    async def admit(self, identity: SpiffeId, actor: str) -> Entry:
        """Let a revoked identity enrol again. Its old certificates stay revoked, a latched failure stays latched.
        Raises `Fault(INVENTORY_UNKNOWN | INVENTORY_STATE)`."""
        async with self._books.writing() as work:
            entry = await read_entry(work.connection, identity)
            if entry.record.state is not State.REVOKED:
                raise Fault(Reason.INVENTORY_STATE, f"the identity is {entry.record.state}", field="identity")
            work.tell("identity.admitted", actor, identity)
            standing = revocations.c.lifted_at.is_(None) & (revocations.c.serial == "")
            lifted = update(revocations).where(standing, revocations.c.identity == str(identity))
            await work.connection.execute(lifted.values(lifted_at=work.now))
            await write(work, entry, FACT, state=State.EXPECTED.value, current_serial="", renewed_serial="")
            return await read_entry(work.connection, identity)

    async def is_revoked(self, identity: SpiffeId, serial: str) -> bool:
        """Whether a certificate (hex serial) of `identity` is revoked, by itself or with its identity."""
        async with self._books.reading() as connection:
            found = await connection.run(_REVOKED, {"which": serial, "whose": str(identity)})
            return found.first() is not None

    async def page(self, *, after: int = 0, limit: int = 100) -> tuple[Revocation, ...]:
        """At most `limit` (1 to 1000) revocations with numbers above `after`, in order."""
        query = select(revocations).where(revocations.c.number > after).order_by(revocations.c.number)
        async with self._books.reading() as connection:
            rows = await connection.execute(query.limit(max(1, min(limit, 1000))))
            return tuple(revocation_of(row) for row in rows)

    async def merge(self, lost: tuple[Revocation, ...], actor: str) -> int:
        """Put revocations back that a restored backup does not know, under new numbers. Returns how many were new."""
        async with self._books.writing() as work:
            count = 0
            for one in lost:
                count += await _merge(work, one, actor)
            return count

    async def crl(self) -> bytes:
        """The issuing CA's CRL as DER: made anew after each revocation and half-way to its next update."""
        now = self._books.clock.now()
        async with self._books.reading() as connection:
            number = (await read_numbers(connection))[Part.REVOCATIONS]
        kept = self._crl
        if kept is None or kept.revocations != number or now >= kept.refresh_at:
            kept = self._crl = await self._make_crl()
        return kept.der

    async def _make_crl(self) -> _Crl:
        async with self._books.writing() as work:
            number = (await work.take_numbers(Part.CRLS))[Part.CRLS]
            seen = (await read_numbers(work.connection))[Part.REVOCATIONS]
            rows = (await work.connection.execute(_listed(int(work.now)))).all()
        builder = crl_builder(self._issuer, number, int(work.now), CRL_SECONDS)
        for row in rows:
            builder = builder.add_revoked_certificate(_crl_entry(row))
        sealed = await seal_crl(self._signer, self._draft.crl(builder))
        return _Crl(sealed.public_bytes(serialization.Encoding.DER), seen, work.now + CRL_SECONDS / 2)


def crl_builder(issuer: Issuer, number: int, now: int, lifetime: int) -> x509.CertificateRevocationListBuilder:
    """An empty CRL (RFC 5280 §5.1) of `issuer`, valid for `lifetime` seconds."""
    return (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.name)
        .last_update(_instant(now))
        .next_update(_instant(now + lifetime))
        .add_extension(x509.CRLNumber(number), False)
        .add_extension(x509.AuthorityKeyIdentifier(issuer.key_identifier, None, None), False)
    )


def revocation_of(row: Any) -> Revocation:
    """The revocation in a row of `revocations`."""
    return Revocation(row.number, SpiffeId.parse(row.identity), row.serial, row.reason, row.at)


async def _revoke_all(work: Work, entry: Entry, reason: RevocationReason, actor: str) -> tuple[Revocation, ...]:
    if entry.record.state is State.REVOKED:
        return ()
    work.tell("identity.revoked", actor, entry.id, why=reason.value)
    await void_tokens(work, actor, entry.id)
    made = [await _revoke(work, entry.id, "", reason, 0)]
    for row in (await work.connection.execute(_living(entry.id, int(work.now)))).all():
        if await _known(work.connection, row.serial) is None:
            made.append(await _revoke(work, entry.id, row.serial, reason, row.not_after))
    await write(work, entry, FACT, state=State.REVOKED.value)
    return tuple(made)


async def check_issuer(work: Work, key_identifier: bytes) -> None:
    """Raises `Fault(ISSUER_WITHDRAWN)` when the CA of this key may sign no more."""
    if await _known(work.connection, key_identifier.hex()) is not None:
        raise Fault(Reason.ISSUER_WITHDRAWN)


async def _revoke(work: Work, identity: SpiffeId, serial: str, reason: str, not_after: int) -> Revocation:
    number = (await work.take_numbers(Part.REVOCATIONS))[Part.REVOCATIONS]
    made = Revocation(number, identity, serial, str(reason), work.now)
    row = {
        "number": number,
        "identity": str(identity),
        "serial": serial,
        "reason": str(reason),
        "at": work.now,
        "not_after": not_after,
    }
    await work.connection.execute(insert(revocations).values(row))
    return made


async def _merge(work: Work, lost: Revocation, actor: str) -> int:
    if lost.issuer:
        return await _merge_issuer(work, lost, actor)
    reason = RevocationReason(lost.reason)
    if not lost.serial:
        if not await is_known(work.connection, lost.id):
            return 0  # whom the inventory does not know is let in nowhere
        entry = await read_entry(work.connection, lost.id)
        return len(await _revoke_all(work, entry, reason, actor))
    if lost.serial == LIFTED_SERIAL or await _known(work.connection, lost.serial) is not None:
        return 0
    work.tell("certificate.revoked", actor, lost.id, serial=lost.serial, why=lost.reason, merged=True)
    # The certificate itself may be younger than the backup: then its end is unknown, and it stays on the CRL.
    found = select(certificates.c.not_after).where(certificates.c.serial == lost.serial)
    not_after = await work.connection.scalar(found)
    await _revoke(work, lost.id, lost.serial, reason, _UNKNOWN_END if not_after is None else not_after)
    return 1


async def _merge_issuer(work: Work, lost: Revocation, actor: str) -> int:
    if await _known(work.connection, lost.issuer) is not None:
        return 0
    work.tell("ca.withdrawn", actor, lost.id, key_identifier=lost.issuer, merged=True)
    await _revoke(work, lost.id, lost.issuer, CA_COMPROMISE, _UNKNOWN_END)
    return 1


_KEY_IDENTIFIER = re.compile(r"[0-9a-f]{40}", re.ASCII)
_UNKNOWN_END = 253402300799  # 9999-12-31T23:59:59Z


async def _known(connection: Connection, serial: str) -> Revocation | None:
    row = (await connection.run(_OF_SERIAL, {"wanted": serial})).first()
    return revocation_of(row) if row else None


def _living(identity: SpiffeId, now: int) -> Select[Any]:
    # Those that were never issued too: their bytes may have been signed, whatever became of the signature.
    return (
        select(certificates.c.serial, certificates.c.not_after)
        .where(certificates.c.identity == str(identity), certificates.c.not_after > now)
        .order_by(certificates.c.serial)
    )


def _listed(now: int) -> Select[Any]:
    return (
        select(revocations)
        .where(revocations.c.serial != "", revocations.c.not_after > now, revocations.c.reason != CA_COMPROMISE)
        .order_by(revocations.c.number)
    )


def _crl_entry(row: Any) -> x509.RevokedCertificate:
    builder = x509.RevokedCertificateBuilder().serial_number(int(row.serial, 16)).revocation_date(_instant(int(row.at)))
    flag = x509.ReasonFlags[row.reason]
    if flag is not x509.ReasonFlags.unspecified:  # RFC 5280 §5.3.1: absent rather than unspecified
        builder = builder.add_extension(x509.CRLReason(flag), False)
    return builder.build()


def _instant(seconds: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)
