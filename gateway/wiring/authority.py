"""The authority as the rest of the process sees it: opened here, or reached elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

from foundation.api import ApiRoute
from foundation.faults import Fault
from foundation.files import open_key
from foundation.identifiers import Kind, SpiffeId
from foundation.identity import SnapshotNumbers
from foundation.ports import ChangeFeed, IdentityDirectory, NodeWords
from foundation.storage.database import Database
from foundation.tls import KeyPair
from foundation.trusttime import TrustTime
from gateway.configuration import Role
from gateway.enforce import try_out
from gateway.feed import HttpFeed, UpstreamAuthoritySettings
from gateway.identity import Certificates, Renewal
from gateway.reporting import Reporter
from gateway.wiring.base import Base
from gateway.wiring.settings import AuthoritySections, Settings
from pki.api.attestation import attestation_routes
from pki.api.enrolment import enrolment_routes, renewal_routes
from pki.api.node import node_routes
from pki.api.routes import authority_routes
from pki.api.standing import Standing
from pki.authority import Authority
from pki.bootstrap import renew_calling_certificate, renew_server_certificate
from pki.enrol.judgement import load_trust
from pki.enrol.service import EnrolmentService
from pki.enrol.sessions import KEY_BYTES
from pki.settings import AuthoritySettings
from policies.signing import public_pem

SESSION_KEY = "session.key"  # in the state folder: seals enrolments that are under way
CHORES_EVERY = 600.0
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AuthorityParts:
    """The feed of facts, our own certificate, whom to tell what is in force in all workers, what runs beside, who is
    who (None: by the snapshot), what nodes say of decisions (None: it is elsewhere), and what only an authority
    serves."""

    feed: ChangeFeed
    certificates: Certificates
    in_force: Callable[[SnapshotNumbers], None]
    background: tuple[Callable[[], Coroutine[Any, Any, None]], ...]
    directory: IdentityDirectory | None = None
    node_words: NodeWords | None = None
    routes: tuple[ApiRoute, ...] = ()
    enrolment_routes: tuple[ApiRoute, ...] = ()


async def join_authority(settings: Settings, base: Base, stack: AsyncExitStack) -> AuthorityParts:
    """By what the settings say of where it is; `stack` closes it. Raises `Fault`."""
    if isinstance(settings.authority, UpstreamAuthoritySettings):
        return _reach(settings, base, settings.authority)
    return await _open(settings, base, settings.authority, stack)


async def _open(settings: Settings, base: Base, here: AuthoritySections, stack: AsyncExitStack) -> AuthorityParts:
    database = await Database.open(here.storage)
    stack.push_async_callback(database.close)
    authority = await Authority.open(here.authority, database, base.audit, base.time)
    enrolment = EnrolmentService.make(
        authority,
        base.hot,
        base.audit,
        base.time,
        session_key=open_key(settings.system.state / SESSION_KEY, KEY_BYTES),
        settings=here.enrolment,
        lifetimes=here.authority.lifetimes,
        trust=load_trust(here.enrolment),
        registry=base.telemetry.registry,
    )
    certificates = await _own_certificates(settings, base, authority, here.authority)
    return AuthorityParts(
        feed=authority.feed,
        certificates=certificates,
        in_force=partial(authority.presence.report_here, here.authority.server_identity),
        background=(
            lambda: _do_chores(certificates, authority, here.authority, base.time),
            lambda: authority.node_health.keep_counting(base.metrics.nodes),
        ),
        directory=Standing(authority, enrolment.use),
        node_words=authority.node_records,
        routes=tuple(_routes(settings, base, authority, enrolment, here.authority)),
        enrolment_routes=tuple(enrolment_routes(enrolment.enrolment)),
    )


async def _own_certificates(
    settings: Settings, base: Base, authority: Authority, here: AuthoritySettings
) -> Certificates:
    await renew_server_certificate(authority, here, base.time)
    if settings.system.role is Role.ALL:
        await renew_calling_certificate(authority, here, base.time)
    folder = here.folder
    certificates = Certificates(KeyPair(folder / "server.pem", folder / "server.key"), folder / "root.pem")
    certificates.load()
    return certificates


def _routes(
    settings: Settings, base: Base, authority: Authority, enrolment: EnrolmentService, here: AuthoritySettings
) -> list[ApiRoute]:
    async def verify_bundle(bundle: bytes) -> int:
        return await try_out(bundle, base.policy_key.key, settings.policy)

    def audit_head() -> Mapping[str, Any]:
        return base.audit.head.to_json()

    def policy_key() -> bytes:
        return public_pem(base.policy_key.key)

    return [
        *authority_routes(authority, here.trust_domain, verify_bundle=verify_bundle, audit_head=audit_head),
        *renewal_routes(enrolment.renewal),
        *attestation_routes(enrolment.attesting),
        *node_routes(authority, here.trust_domain, policy_key=policy_key, terms=here.bundle),
    ]


def _reach(settings: Settings, base: Base, elsewhere: UpstreamAuthoritySettings) -> AuthorityParts:
    api = elsewhere.api
    certificates = Certificates(api.pair, api.ca)
    certificates.load()
    authority = SpiffeId(settings.system.trust_domain, Kind.GATEWAY, elsewhere.identity)
    renew = ("renew", "--if-due", "--config", str(settings.configuration.path), "--renewal", api.address, "--json")
    reporter = Reporter(api.address, authority, certificates.client, base.time)
    return AuthorityParts(
        feed=HttpFeed(api.address, authority, certificates.client, base.time.heard),
        certificates=certificates,
        in_force=reporter.in_force,
        background=(Renewal(certificates, renew, base.time).run, reporter.run),
    )


async def _do_chores(
    certificates: Certificates, authority: Authority, settings: AuthoritySettings, time: TrustTime
) -> None:
    """Renew the listeners' certificate before it ends, and drop what the ledger need not keep. What fails now is tried
    again."""
    while True:
        await time.sleep(CHORES_EVERY)
        try:
            await renew_server_certificate(authority, settings, time)
            if (settings.folder / "calling.pem").exists():
                await renew_calling_certificate(authority, settings, time)
            certificates.load()
            await authority.ledger.tidy()
        except Fault as fault:
            _LOG.error("a chore failed: %s", fault)
