"""A process of its own that issues, for tests that race several or kill one. Run with `python -m`.

race FOLDER STORAGE TOKEN COUNT   uses one token COUNT times at once; prints a line for each: `issued` or a reason
die FOLDER STORAGE NODE STEP      issues for NODE and kills itself (SIGKILL) at STEP; prints sealed certificates in hex

STORAGE is the database's URL.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from foundation.faults import Fault
from foundation.identifiers import Kind, SpiffeId
from foundation.storage.database import Database
from foundation.storage.settings import StorageSettings
from foundation.wire.enrolment import Token
from pki import issue
from pki.authority import Authority
from pki.issue import IssueRequest
from pki.profile import ProfileName
from pki.settings import AuthoritySettings
from tests.fakes.audit import MemoryAuditLog
from tests.fakes.clock import ManualClock
from tests.support.site import ACTOR, TRUST_DOMAIN, attested, new_spki

# Step → the function of `pki.issue` at whose call the process dies.
STEPS = {
    "before reserving": "reserve",
    "reserved, not signed": "seal_certificate",
    "signed, not recorded": "_sealed",
    "while recording": "write_certified",
    "recorded, not answered": "_answered",
}


async def main(arguments: list[str]) -> None:
    act, folder, storage, *rest = arguments
    database = await Database.open(StorageSettings(storage, wait=60.0))
    settings = AuthoritySettings(TRUST_DOMAIN, Path(folder) / "authority")
    try:
        authority = await Authority.open(settings, database, MemoryAuditLog(), ManualClock())
        await (_race if act == "race" else _die)(authority, *rest)
    finally:
        await database.close()


async def _race(authority: Authority, token: str, count: str) -> None:
    use = await authority.tokens.check(Token.parse(token))
    use = await authority.tokens.bind(use, attested(ManualClock(), use.identity.name).ek_sha256)
    _say("ready")
    sys.stdin.readline()  # the starting shot
    requests = [_request(use.identity, token=use) for _ in range(int(count))]
    for outcome in await asyncio.gather(*(authority.issue(one) for one in requests), return_exceptions=True):
        _say(outcome.reason.code if isinstance(outcome, Fault) else "issued")


async def _die(authority: Authority, node: str, step: str) -> None:
    seal = issue.seal_certificate

    async def sealing(*args: Any) -> x509.Certificate:
        sealed = await seal(*args)
        _say(sealed.public_bytes(serialization.Encoding.DER).hex())
        if STEPS[step] == "_sealed":
            await _kill()
        return sealed

    issue.seal_certificate = sealing
    if hasattr(issue, STEPS[step]):
        setattr(issue, STEPS[step], _kill)
    await authority.issue(_request(SpiffeId(TRUST_DOMAIN, Kind.NODE, node)))
    await _kill()


async def _kill(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _request(identity: SpiffeId, **more: Any) -> IssueRequest:
    passed = attested(ManualClock(), identity.name)
    return IssueRequest(identity, ProfileName.NODE, new_spki(), ACTOR, attested=passed, **more)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
