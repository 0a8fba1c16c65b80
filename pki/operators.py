"""Operators' certificates: issued by who may make operators, renewed by who holds the newest one.

Laws held here:
- the request gives the key and proves its possession; name, lifetime and roles are the authority's own records';
- only an operator's newest certificate renews. So a stolen one is found out: of two holders one is refused, on record;
- asked again with the same key, the same certificate is the answer: a lost answer strands nobody.
"""

from __future__ import annotations

import hashlib
import hmac
import json

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from foundation.faults import Fault
from foundation.identifiers import Kind, SpiffeId
from foundation.ports import Caller
from foundation.reasons import Reason
from pki.books import Books
from pki.entries import Entry, check_enrollable
from pki.inventory import Inventory
from pki.issue import Answer, IssuedCertificate, IssueRequest, Issuing
from pki.ledger import Ledger
from pki.profile import ProfileName
from pki.tpm.request import requested_key

MAX_REQUEST_BYTES = 8 * 1024


class Operators:
    """Answers certificate requests (DER PKCS #10, RFC 2986) by what `compose_answer` makes of a certificate."""

    def __init__(self, books: Books, issuing: Issuing, inventory: Inventory, ledger: Ledger) -> None:
        self._books = books
        self._issuing = issuing
        self._inventory = inventory
        self._ledger = ledger

    async def issue(self, identity: SpiffeId, request: bytes, actor: str) -> bytes:
        """A certificate for an operator that the inventory has. Raises `Fault(CSR_* | WEAK_KEY | INVENTORY_UNKNOWN |
        INVENTORY_STATE | ATTESTATION_*)`, and as `Issuing.issue`."""
        spki = requested_key(request, "body.csr")
        await self._entry(identity)
        key = _answer_key(identity, spki, "")
        return await self._ledger.recall(key) or await self._certify(key, identity, spki, actor)

    async def renew(self, caller: Caller, request: bytes) -> bytes:
        """The caller's next certificate, by the one that it called with. Raises `Fault(KIND_NOT_ALLOWED |
        CERTIFICATE_SUPERSEDED)`, and as `issue`."""
        spki = requested_key(request, "body.csr")
        # A JWT says for a while with which roles its holder acts; it outlives nothing by making a certificate.
        if caller.via != "certificate" or caller.id.kind is not Kind.OPERATOR:
            raise Fault(Reason.KIND_NOT_ALLOWED, "operators renew, each with its own certificate and without a JWT")
        entry = await self._entry(caller.id)
        key = _answer_key(caller.id, spki, caller.serial)
        known = await self._ledger.recall(key)
        if known is None and not hmac.compare_digest(caller.serial, entry.current_serial):
            await self._refuse(caller, entry.current_serial)
        return known or await self._certify(key, caller.id, spki, str(caller.id), caller.serial)

    async def _entry(self, identity: SpiffeId) -> Entry:
        entry = await self._inventory.get(identity)
        check_enrollable(entry)
        if entry.ek_sha256:  # an identity that a TPM is bound to never comes back without one
            raise Fault(Reason.ATTESTATION_REQUIRED, field="identity")
        return entry

    async def _certify(self, key: bytes, identity: SpiffeId, spki: bytes, actor: str, renews: str = "") -> bytes:
        answer = Answer(key, compose_answer)
        asked = IssueRequest(identity, ProfileName.OPERATOR, spki, actor, renews=renews, answer=answer)
        return compose_answer(await self._issuing.issue(asked))

    async def _refuse(self, caller: Caller, newest: str) -> None:
        async with self._books.writing() as work:
            reason = Reason.CERTIFICATE_SUPERSEDED
            work.tell("renew.refused", str(caller.id), caller.id, reason=reason.code, serial=caller.serial)
        raise Fault(reason, internal=f"newest is {newest}")


def compose_answer(issued: IssuedCertificate) -> bytes:
    """What an operator is told, as JSON; `pem` is leaf and issuing CA, for the root is no part of what a TLS client
    sends (RFC 8446 §4.4.2)."""
    chain = (x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM).decode() for der in issued.chain[:-1])
    answer = {"identity": str(issued.identity), "serial": issued.serial, "not_after": issued.not_after}
    return json.dumps(answer | {"pem": "".join(chain)}, separators=(",", ":")).encode()


def _answer_key(identity: SpiffeId, spki: bytes, renews: str) -> bytes:
    return hashlib.sha256(b"\0".join((b"operator", str(identity).encode(), renews.encode(), spki))).digest()
