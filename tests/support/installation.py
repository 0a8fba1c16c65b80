"""A whole authority for tests: initialised by `pki.bootstrap`, with its real database, enrolment and listeners."""

from __future__ import annotations

import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from agent.settings import Address
from foundation.api import ApiRoute, api_application, public_application
from foundation.callers import CertificateCallers
from foundation.files import make_private_folder
from foundation.hotstate import HotStateSettings, MemoryHotState
from foundation.identifiers import Kind, SpiffeId
from foundation.ports import ApiAuthorizer
from foundation.serving import ListenerLimits, serve_api
from foundation.storage.database import Database
from foundation.storage.settings import StorageSettings
from foundation.tls import KeyPair, ServerContext, client_context, server_context
from foundation.wire.enrolment import Token
from pki.api.attestation import attestation_routes
from pki.api.enrolment import enrolment_routes, renewal_routes
from pki.api.node import node_routes
from pki.api.routes import authority_routes
from pki.api.standing import Standing
from pki.authority import Authority, load_ca
from pki.bootstrap import initialise
from pki.enrol.judgement import Trust
from pki.enrol.service import EnrolmentService
from pki.enrol.sessions import KEY_BYTES
from pki.enrol.settings import EnrolmentSettings, RateSettings
from pki.entries import Expected
from pki.issue import IssueRequest
from pki.profile import ProfileName
from pki.settings import AuthoritySettings
from pki.tpm.endorsement import MakerTrust
from tests.fakes.audit import MemoryAuditLog
from tests.fakes.clock import ManualClock
from tests.support.certificates import write_pair

TRUST_DOMAIN = "fleet.example"


class PermitAll:
    """Implements `foundation.ports.ApiAuthorizer` for tests of what is not authorisation."""

    async def authorise(self, caller: object, route: str, method: str) -> str:
        return "d-test"


@dataclass
class Installation:
    """One authority with everything around it."""

    folder: Path
    clock: ManualClock
    settings: AuthoritySettings
    database: Database
    audit: MemoryAuditLog
    hot: MemoryHotState
    authority: Authority
    service: EnrolmentService
    enrolment: EnrolmentSettings
    trust: Trust

    @property
    def root_pem(self) -> bytes:
        return (self.settings.folder / "root.pem").read_bytes()

    @property
    def operator(self) -> KeyPair:
        return self.pair("operator")

    def pair(self, name: str) -> KeyPair:
        return KeyPair(self.settings.folder / f"{name}.pem", self.settings.folder / f"{name}.key")

    def id(self, name: str, kind: Kind = Kind.NODE) -> SpiffeId:
        return SpiffeId(TRUST_DOMAIN, kind, name)

    async def token(self, name: str = "edge-1", kind: Kind = Kind.NODE, ttl: float = 3600.0) -> Token:
        return await self.authority.tokens.mint(self.id(name, kind), ttl, "test")

    def reasons(self, kind: str) -> list[str]:
        """The reasons of the audit log's events of this kind, in order."""
        return [event.reason for event in self.audit.events if event.kind == kind]

    def context(self, *, mutual: bool) -> ServerContext:
        roots = self.root_pem + (self.settings.folder / "issuing.pem").read_bytes() if mutual else None
        return server_context(self.pair("server"), client_roots=roots, present=b"" if mutual else self.root_pem)

    def routes(self) -> list[ApiRoute]:
        async def verify(bundle: bytes) -> int:
            return int(bundle)

        own = authority_routes(self.authority, TRUST_DOMAIN, verify_bundle=verify, audit_head=lambda: {"size": 0})
        nodes = node_routes(self.authority, TRUST_DOMAIN, policy_key=self.policy_key, terms=self.settings.bundle)
        return [*own, *nodes, *renewal_routes(self.service.renewal), *attestation_routes(self.service.attesting)]

    def policy_key(self) -> bytes:
        """The policy signing key's public half, PEM."""
        return (self.settings.folder / "policy.pub").read_bytes()

    async def certify(self, name: str, kind: Kind = Kind.OPERATOR, roles: tuple[str, ...] = ()) -> KeyPair:
        """An identity of this kind with these roles, active, and its certificate with a software key."""
        identity, key = self.id(name, kind), ec.generate_private_key(ec.SECP256R1())
        await self.authority.inventory.add(Expected(identity, roles=roles), "test")
        spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        names = ("localhost", "127.0.0.1") if kind is Kind.GATEWAY else ()
        issued = await self.authority.issue(IssueRequest(identity, ProfileName(kind.value), spki, "test", names=names))
        leaf, issuing = (x509.load_der_x509_certificate(der) for der in issued.chain[:2])
        pair = write_pair(self.folder, f"{kind.value}-{name}", leaf, key)
        pair.certificate.write_bytes(pair.certificate.read_bytes() + issuing.public_bytes(Encoding.PEM))
        return pair

    def stranger(self) -> ssl.SSLContext:
        """The context of a client that has no certificate and trusts the root."""
        return client_context(self.root_pem)

    def another_process(self) -> EnrolmentService:
        """Enrolment as a second process over the same database and hot state would serve it."""
        again = Authority(load_ca(self.settings), self.settings.lifetimes, self.database, self.audit, self.clock)
        return _service(again, self.hot, self.audit, self.clock, self.settings, self.enrolment, self.trust)

    @asynccontextmanager
    async def enrolling(self, limits: ListenerLimits | None = None) -> AsyncIterator[Address]:
        """The enrolment listener."""
        application = public_application(enrolment_routes(self.service.enrolment))
        context = self.context(mutual=False)
        async with serve_api(application, lambda: context, "127.0.0.1", 0, limits) as (host, port):
            yield Address(host, port)

    @asynccontextmanager
    async def serving(
        self, authorizer: ApiAuthorizer | None = None, limits: ListenerLimits | None = None
    ) -> AsyncIterator[Address]:
        """The API's listener."""
        callers = CertificateCallers(TRUST_DOMAIN, Standing(self.authority, self.service.use), self.clock)
        application = api_application(self.routes(), callers.identify, authorizer or PermitAll())
        context = self.context(mutual=True)
        async with serve_api(application, lambda: context, "127.0.0.1", 0, limits) as (host, port):
            yield Address(host, port)


async def post(address: Address, path: str, raw: bytes, context: ssl.SSLContext) -> tuple[int, bytes]:
    """One message to a listener on this machine, on a connection of its own."""
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session,
        session.post(
            f"https://localhost:{address.port}{path}", data=raw, headers={"Content-Type": "application/json"}
        ) as response,
    ):
        return response.status, await response.read()


@asynccontextmanager
async def installation(
    folder: Path,
    *,
    hardware: tuple[x509.Certificate, ...] = (),
    virtual: tuple[x509.Certificate, ...] = (),
    trust: Trust | None = None,
    **enrolment: Any,
) -> AsyncIterator[Installation]:
    """A new authority in `folder`, or the one that is there. It believes the makers of these roots; `enrolment`
    sets fields of `EnrolmentSettings`."""
    make_private_folder(folder)
    clock, audit = ManualClock(time.time()), MemoryAuditLog()
    settings = AuthoritySettings(TRUST_DOMAIN, folder / "authority")
    database = await Database.open(StorageSettings(url=f"sqlite:///{folder}/sallyport.db"))
    try:
        if not (settings.folder / "operator.pem").exists():
            await initialise(settings, database, audit, clock)
        authority = await Authority.open(settings, database, audit, clock)
        hot = MemoryHotState(HotStateSettings(), clock)
        lenient = EnrolmentSettings(classes=("hardware", "virtual"), rate=RateSettings(1000, 1000))
        chosen = replace(lenient, **enrolment)
        believed = trust or Trust(MakerTrust(hardware, virtual))
        service = _service(authority, hot, audit, clock, settings, chosen, believed)
        yield Installation(folder, clock, settings, database, audit, hot, authority, service, chosen, believed)
    finally:
        await database.close()


def _service(
    authority: Authority,
    hot: MemoryHotState,
    audit: MemoryAuditLog,
    clock: ManualClock,
    settings: AuthoritySettings,
    enrolment: EnrolmentSettings,
    trust: Trust,
) -> EnrolmentService:
    return EnrolmentService.make(
        authority,
        hot,
        audit,
        clock,
        session_key=bytes(KEY_BYTES),
        settings=enrolment,
        lifetimes=settings.lifetimes,
        trust=trust,
    )
