"""Puts a fleet into a new authority's books: `python -m benchmarks.fleet`.

Some of its nodes get certificates as if they had enrolled: the authority's own, by the same pipeline as enrolment's;
what is left out is the attestation itself. Others get tokens, to enrol by themselves. Runs before `sallyport serve`
does, in a process of its own: the audit log has one writer. Nothing of it is worth waiting for the disk: should the
machine stop, the fleet is made again.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import load_der_x509_certificate
from sqlalchemy import event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import Pool

from foundation.audit.log import MerkleAuditLog
from foundation.clock import SystemClock
from foundation.files import write_secret
from foundation.identifiers import Kind, SpiffeId
from foundation.identity import AttestationClass
from foundation.storage.database import Database
from gateway.configuration import read_configuration
from gateway.wiring.settings import Settings
from pki.authority import Authority
from pki.entries import Attested, Counters, Expected
from pki.issue import IssueRequest
from pki.profile import ProfileName
from tests.support.soft_tpm import AK, name_of, public_area

LIFETIME = 6 * 3600
ACTOR = "benchmark"
_PEM = serialization.Encoding.PEM


def expected_nodes(trust_domain: str, count: int, roles: tuple[str, ...]) -> tuple[Expected, ...]:
    """The fleet: nodes of tier 2 in twenty sites."""
    return tuple(
        Expected(SpiffeId(trust_domain, Kind.NODE, f"edge-{i}"), roles, 2, "eu", f"site-{i % 20}", "edge")
        for i in range(count)
    )


@asynccontextmanager
async def opened(config: Path) -> AsyncIterator[Authority]:
    """The authority that `sallyport init` made."""
    settings, clock = Settings.parse(read_configuration(config)), SystemClock()
    async with AsyncExitStack() as stack:
        audit = await MerkleAuditLog.open(settings.audit, clock)
        stack.push_async_callback(audit.close)
        database = await Database.open(settings.authority_sections.storage)
        stack.push_async_callback(database.close)
        yield await Authority.open(settings.authority_sections.authority, database, audit, clock)


async def enlist(
    authority: Authority,
    fleet: tuple[Expected, ...],
    certified: int,
    tokens: int,
    folder: Path,
    *,
    attesting: bool = False,
) -> None:
    """Add `fleet` to the inventory. In `folder`: for the first `certified` of it a PEM file of chain and key, and with
    `attesting` one of a key that stands for the AK; for the first `tokens` of it a token."""
    await authority.inventory.add_all(fleet, ACTOR)
    until = SystemClock().now() + LIFETIME
    for node in fleet[:certified]:
        ak = ec.generate_private_key(ec.SECP256R1())
        write_secret(folder / f"{node.id.name}.pem", await _certified(authority, node.id, until, ak))
        if attesting:
            write_secret(folder / f"{node.id.name}.ak", _private(ak))
    for node in fleet[:tokens]:
        token = await authority.tokens.mint(node.id, LIFETIME, ACTOR)
        write_secret(folder / f"{node.id.name}.token", token.encode().encode())


async def _certified(authority: Authority, node: SpiffeId, until: float, ak: ec.EllipticCurvePrivateKey) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    spki = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    tpm = hashlib.sha256(node.name.encode()).digest()
    area = public_area(ak.public_key(), AK)
    attested = Attested(AttestationClass.VIRTUAL, until, tpm, area, name_of(area), Counters(1, 0, 1))
    request = IssueRequest(node, ProfileName.NODE, spki, ACTOR, attested, lifetime=LIFETIME)
    issued = await authority.issue(request)
    chain = (load_der_x509_certificate(each).public_bytes(_PEM) for each in issued.chain[:-1])
    return b"".join((*chain, _private(key)))


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


async def _enlist(given: argparse.Namespace) -> None:
    domain = Settings.parse(read_configuration(given.config)).system.trust_domain
    fleet = expected_nodes(domain, given.nodes, tuple(given.role))
    async with opened(given.config) as authority:
        await enlist(authority, fleet, given.certified, given.tokens, given.folder, attesting=given.attesting)


def _do_not_wait_for_the_disk() -> None:
    os.fsync = lambda descriptor: None

    @event.listens_for(Pool, "checkout")
    def unsynchronised(connection: DBAPIConnection, entry: object, proxy: object) -> None:
        connection.cursor().execute("PRAGMA synchronous = OFF")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path, help="sallyport.toml")
    parser.add_argument("folder", type=Path, help="where PEM files and tokens go")
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--certified", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=0)
    parser.add_argument("--attesting", action="store_true")
    parser.add_argument("--role", action="append", default=[])
    _do_not_wait_for_the_disk()
    asyncio.run(_enlist(parser.parse_args()))


if __name__ == "__main__":
    main()
