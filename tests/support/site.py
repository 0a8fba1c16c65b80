"""A real authority in a folder: keys in files, rows in a database, time by hand, audit in memory."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from foundation.clock import Clock
from foundation.identifiers import Kind, SpiffeId
from foundation.identity import AttestationClass
from foundation.storage.database import Database
from foundation.storage.settings import StorageSettings
from pki.authority import Authority
from pki.bootstrap import initialise
from pki.entries import Attested, Counters, Entry, Expected
from pki.issue import IssuedCertificate, IssueRequest
from pki.profile import ProfileName
from pki.rounds import Round
from pki.settings import AuthoritySettings
from tests.fakes.audit import MemoryAuditLog
from tests.fakes.clock import ManualClock

TRUST_DOMAIN = "fleet.example"
ACTOR = "test"
FRESH = Counters(1, 0, 1000)


@dataclass(slots=True)
class Site:
    """What a test holds of it."""

    authority: Authority
    settings: AuthoritySettings
    database: Database
    audit: MemoryAuditLog
    clock: ManualClock

    def node(self, name: str = "node-1") -> SpiffeId:
        return SpiffeId(TRUST_DOMAIN, Kind.NODE, name)

    async def expect(self, name: str = "node-1") -> SpiffeId:
        """A node in the inventory."""
        return (await self.authority.inventory.add(Expected(self.node(name)), ACTOR)).id

    async def issue(self, identity: SpiffeId, **more: object) -> IssuedCertificate:
        """A certificate for a node whose attestation just passed, unless `more` says otherwise."""
        values = {"attested": attested(self.clock, identity.name)} | more
        request = IssueRequest(identity, ProfileName.NODE, new_spki(), ACTOR, **values)  # type: ignore[arg-type]
        return await self.authority.issue(request)


@asynccontextmanager
async def open_site(folder: Path, storage: str = "") -> AsyncIterator[Site]:
    """A new authority below `folder`, or the one that is there; its rows at the URL `storage`, otherwise there too."""
    settings = AuthoritySettings(TRUST_DOMAIN, folder / "authority")
    database = await Database.open(StorageSettings(storage or storage_url(folder)))
    audit, clock = MemoryAuditLog(), ManualClock()
    try:
        if not (settings.folder / "operator.pem").exists():
            await initialise(settings, database, audit, clock)
        authority = await Authority.open(settings, database, audit, clock)
        yield Site(authority, settings, database, audit, clock)
    finally:
        await database.close()


async def attest_again(authority: Authority, identity: SpiffeId, passed: Attested) -> Entry:
    """A quote passed, as continuous re-attestation records it; what is left out is its messages."""
    await authority.rounds.hand_out(identity, secrets.token_bytes(32))
    entry, judged = await authority.rounds.read(identity)
    after = Round(secrets.token_bytes(32), judged.issued_at, judged.nonce, judged.issued_at)
    assert await authority.rounds.move_on(entry, judged, after, passed, str(identity))
    return await authority.inventory.get(identity)


def storage_url(folder: Path) -> str:
    return f"sqlite:///{folder}/sallyport.db"


def new_spki() -> bytes:
    """The public half of a fresh key, DER."""
    key = ec.generate_private_key(ec.SECP256R1())
    return key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def attested(clock: Clock, name: str, *, counters: Counters = FRESH) -> Attested:
    """A passed attestation of the TPM that belongs to the node `name`."""
    ek = hashlib.sha256(name.encode()).digest()
    return Attested(AttestationClass.VIRTUAL, clock.now() + 300, ek, b"ak", b"ak-name", counters)
