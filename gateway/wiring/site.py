"""What is done to a site while nothing of it serves: its beginning, and its return from a backup."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from foundation.audit.log import MerkleAuditLog
from foundation.clock import SystemClock
from foundation.files import make_private_folder
from foundation.identity import AttestationClass, Revocation
from foundation.storage.database import Database
from gateway.keep import read_facts
from gateway.wiring.settings import Settings
from pki.authority import Authority
from pki.bootstrap import Initialised, initialise
from policies.lifecycle.revision import build
from policies.lifecycle.workspace import read_workspace
from policies.signing import load_signing_key


async def initialise_all(settings: Settings, workspace: Path) -> Initialised:
    """`sallyport init`: the audit log, the authority, and revision 1 of the policy from `workspace`. What a run that
    was stopped left is taken up again. Raises `Fault(CONFLICT)` when there is an authority."""
    clock, here = SystemClock(), settings.authority_sections
    make_private_folder(settings.system.state)
    if not settings.audit.key_path.exists():
        MerkleAuditLog.create(settings.audit, clock)
    async with _opened(settings) as (audit, database):
        made = await initialise(here.authority, database, audit, clock)
        authority = await Authority.open(here.authority, database, audit, clock)
        least = AttestationClass.HARDWARE if settings.system.is_production else AttestationClass.NONE
        first = await asyncio.to_thread(
            build, read_workspace(workspace, least), 1, int(clock.now()), settings.policy.compile
        )
        bundle = first.signed(load_signing_key(here.authority.folder / "policy.key"))
        await authority.publish_policy(1, bundle, "init")
    return made


async def recover(settings: Settings, facts: Sequence[Path]) -> int:
    """`sallyport recover`, once a backup of the authority was put back and before it serves: no number, epoch or token
    that was given out since the backup counts, and the revocations in `facts`, which gateways kept, are in force again.
    Returns how many of them the backup did not know. Raises `Fault`; the whole of it may be run again."""
    here = settings.authority_sections
    lost = [each for path in facts for each in read_facts(path) if isinstance(each, Revocation)]
    async with _opened(settings) as (audit, database):
        authority = await Authority.open(here.authority, database, audit, SystemClock())
        await authority.raise_numbers("recover")
        return await authority.revocations.merge(tuple(lost), "recover")


@asynccontextmanager
async def _opened(settings: Settings) -> AsyncIterator[tuple[MerkleAuditLog, Database]]:
    async with AsyncExitStack() as stack:
        audit = await MerkleAuditLog.open(settings.audit, SystemClock())
        stack.push_async_callback(audit.close)
        database = await Database.open(settings.authority_sections.storage)
        stack.push_async_callback(database.close)
        yield audit, database
