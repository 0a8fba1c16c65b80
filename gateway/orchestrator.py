"""Builds every part from the settings, starts them in order, stops them in reverse. The only place that joins packages.

Order: records → authority → facts and policy → data plane → listeners → health. A part that cannot start stops the
start, with its reason. Whatever runs is owned by one task group: when one part fails, all stop.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web

from foundation.api import ApiRoute, api_application, public_application
from foundation.audit.log import MerkleAuditLog
from foundation.audit.settings import AuditSettings
from foundation.bearer import BearerVerifier
from foundation.callers import CertificateCallers, LocalCallers
from foundation.clock import SystemClock
from foundation.decisionlog.log import DecisionLog
from foundation.decisionlog.settings import DecisionLogSettings
from foundation.faults import Fault
from foundation.files import make_private_folder
from foundation.hotstate.memory import HotStateSettings, MemoryHotState
from foundation.identity import AttestationClass
from foundation.reasons import Reason
from foundation.serving import serve_api, serve_unix
from foundation.storage.database import Database
from foundation.storage.settings import StorageSettings
from foundation.telemetry import Telemetry, TelemetrySettings
from foundation.tls import KeyPair, server_context
from foundation.trusttime import TrustTime
from gateway.api.authorise import PolicyAuthorizer
from gateway.api.operators import OperatorsApi
from gateway.api.settings import ApiSettings
from gateway.configuration import Configuration, SystemSettings
from gateway.enforce import Enforcer
from gateway.fleet.staleness import StalenessSettings
from gateway.follow import Follower
from gateway.health import HealthSettings, health_app
from gateway.metrics import GatewayMetrics
from gateway.proxy.decide import Decider
from gateway.proxy.listener import Listener
from gateway.proxy.oblige import Obligations
from gateway.proxy.record import Records
from gateway.proxy.services import ConnectionServices, GatewayListenerSettings
from gateway.proxy.upstream import Upstreams, UpstreamSettings
from gateway.records import recording
from gateway.snapshot import SnapshotStore
from gateway.streams.registry import Registry
from pki.api.enrolment import enrolment_routes, renewal_routes
from pki.api.routes import authority_routes
from pki.api.standing import Standing
from pki.authority import Authority
from pki.bootstrap import Initialised, initialise, renew_server_certificate
from pki.enrol.judgement import load_trust
from pki.enrol.service import EnrolmentService
from pki.enrol.settings import EnrolmentSettings
from pki.settings import AuthoritySettings
from policies.lifecycle.revision import build, verify
from policies.lifecycle.signing import VerifyingKey, load_signing_key, parse_verifying_key
from policies.lifecycle.workspace import read_workspace
from policies.settings import PolicySettings

SERVER_CERTIFICATE_CHECKED_EVERY = 600.0
DRAIN_SECONDS = 10.0
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Settings:
    """Every part's own settings, parsed before anything starts, so that a wrong one changes nothing."""

    system: SystemSettings
    telemetry: TelemetrySettings
    storage: StorageSettings
    audit: AuditSettings
    decisions: DecisionLogSettings
    hot_state: HotStateSettings
    authority: AuthoritySettings
    enrolment: EnrolmentSettings
    api: ApiSettings
    policy: PolicySettings
    listener: GatewayListenerSettings
    upstreams: UpstreamSettings
    staleness: StalenessSettings
    health: HealthSettings

    @classmethod
    def parse(cls, configuration: Configuration) -> Settings:
        """Raises `Fault(SETTING_INVALID | SETTING_UNKNOWN)` with the setting's path."""
        section = configuration.section
        system = SystemSettings.parse(section("sallyport"))
        gateway = section("gateway")
        settings = cls(
            system=system,
            telemetry=TelemetrySettings.parse(section("telemetry")),
            storage=StorageSettings.parse(section("storage")),
            audit=AuditSettings.parse(section("audit")),
            decisions=DecisionLogSettings.parse(section("decisions")),
            hot_state=HotStateSettings.parse(section("hotstate")),
            authority=AuthoritySettings.parse(section("authority")),
            enrolment=EnrolmentSettings.parse(section("enrolment"), production=system.is_production),
            api=ApiSettings.parse(section("api")),
            policy=PolicySettings.parse(section("policy")),
            listener=GatewayListenerSettings.parse(gateway.section("listener", optional=True)),
            upstreams=UpstreamSettings.parse(gateway.section("upstreams", optional=True)),
            staleness=StalenessSettings.parse(gateway.section("staleness", optional=True)),
            health=HealthSettings.parse(section("health")),
        )
        gateway.finish()
        return settings


@dataclass(frozen=True, slots=True)
class _Base:
    """What everything else stands on."""

    telemetry: Telemetry
    time: TrustTime
    audit: MerkleAuditLog
    decisions: DecisionLog
    metrics: GatewayMetrics
    policy_key: VerifyingKey


@dataclass(frozen=True, slots=True)
class _AuthorityParts:
    authority: Authority
    enrolment: EnrolmentService


@dataclass(frozen=True, slots=True)
class _GatewayParts:
    """The data plane over one snapshot store."""

    store: SnapshotStore
    follower: Follower
    registry: Registry
    listener: Listener
    authorizer: PolicyAuthorizer
    operators: OperatorsApi


class Orchestrator:
    """One process of authority and gateway. `run` returns when `stop` is set and everything has ended."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.started = asyncio.Event()
        self._contexts: dict[str, ssl.SSLContext] = {}

    async def run(self, stop: asyncio.Event) -> None:
        """Start everything, serve until `stop`, drain, stop everything. Raises `Fault` when a part cannot start."""
        async with AsyncExitStack() as stack:
            base = await self._open_base(stack)
            authority = await self._open_authority(stack, base)
            gateway = self._build_gateway(base, authority)
            background = (
                base.time.run(),
                gateway.follower.run(),
                gateway.registry.run(),
                self._keep_certificate(authority, base),
            )
            await stack.enter_async_context(_running(*background))
            await gateway.follower.caught_up.wait()
            await self._listen(stack, base, authority, gateway)
            self.started.set()
            await stop.wait()
            await gateway.listener.drain(DRAIN_SECONDS)

    # --- building, in the order of the start ------------------------------------------------------

    async def _open_base(self, stack: AsyncExitStack) -> _Base:
        settings = self._settings
        make_private_folder(settings.system.state)
        telemetry = Telemetry(settings.telemetry)
        stack.callback(telemetry.close)
        time = TrustTime.open(settings.system.state / "trust-time", SystemClock())
        stack.callback(time.close)
        audit = await MerkleAuditLog.open(settings.audit, time)
        stack.push_async_callback(audit.close)
        metrics = GatewayMetrics(telemetry.registry)
        decisions = await DecisionLog.open(settings.decisions, time, audit, metrics.dropped)
        stack.push_async_callback(decisions.close)
        policy_key = parse_verifying_key((settings.authority.folder / "policy.pub").read_bytes())
        return _Base(telemetry, time, audit, decisions, metrics, policy_key)

    async def _open_authority(self, stack: AsyncExitStack, base: _Base) -> _AuthorityParts:
        settings = self._settings
        database = await Database.open(settings.storage)
        stack.push_async_callback(database.close)
        authority = await Authority.open(settings.authority, database, base.audit, base.time)
        hot = MemoryHotState(settings.hot_state, base.time)
        enrolment = EnrolmentService.make(
            authority,
            hot,
            base.audit,
            base.time,
            settings=settings.enrolment,
            lifetimes=settings.authority.lifetimes,
            trust=load_trust(settings.enrolment),
        )
        await renew_server_certificate(authority, settings.authority, base.time)
        self._load_contexts()
        return _AuthorityParts(authority, enrolment)

    def _build_gateway(self, base: _Base, parts: _AuthorityParts) -> _GatewayParts:
        settings, store = self._settings, SnapshotStore()
        record = recording(base.decisions, base.time)
        registry = Registry(base.time, record)
        store.listen(registry.changed)
        base.metrics.watch(store, registry)
        enforcer = Enforcer(settings.policy, base.policy_key, settings.system.state / "policy.floor")
        follower = Follower(parts.authority.feed, store, enforcer, base.audit, base.time)
        decider = Decider(store, base.time, settings.staleness, Obligations(base.time), base.decisions.ids)
        services = ConnectionServices(
            settings.listener,
            settings.system.trust_domain,
            base.time,
            lambda: store.current.policy.routes if store.current.policy else None,
            decider,
            registry,
            Records(base.decisions),
            Upstreams(settings.upstreams, base.time),
            base.metrics,
        )
        return _GatewayParts(
            store,
            follower,
            registry,
            Listener(lambda: self._contexts[_CLIENTS_PROVEN], services),
            PolicyAuthorizer(store, base.time, base.audit, base.decisions.ids, record),
            OperatorsApi(store, registry, base.decisions, base.time, lambda: _waits_for(store, follower)),
        )

    async def _listen(self, stack: AsyncExitStack, base: _Base, parts: _AuthorityParts, gateway: _GatewayParts) -> None:
        settings = self._settings
        domain = settings.system.trust_domain
        routes = [*self._authority_routes(base, parts), *gateway.operators.routes()]
        bearer = BearerVerifier(settings.api.issuers) if settings.api.issuers else None
        standing = Standing(parts.authority, parts.enrolment.use)
        callers = CertificateCallers(domain, standing, base.time, bearer)
        api = api_application(routes, callers.identify, gateway.authorizer, clock=base.time)
        local = api_application(routes, LocalCallers(domain).identify, gateway.authorizer, clock=base.time)
        enrolment = public_application(enrolment_routes(parts.enrolment.enrolment), clock=base.time)
        health = health_app(
            base.telemetry.registry, {"policy and facts": lambda: _waits_for(gateway.store, gateway.follower)}
        )
        proven, strangers = (lambda: self._contexts[_CLIENTS_PROVEN]), (lambda: self._contexts[_STRANGERS])
        enter = stack.enter_async_context
        await enter(serve_api(enrolment, strangers, settings.enrolment.host, settings.enrolment.port))
        await enter(serve_api(api, proven, settings.api.host, settings.api.port))
        await enter(serve_unix(local, settings.api.socket))
        await enter(_serve_plain(health, settings.health.host, settings.health.port))
        stack.push_async_callback(gateway.listener.close)
        gateway.listener.start(_listening_socket(settings.listener))

    def _authority_routes(self, base: _Base, parts: _AuthorityParts) -> list[ApiRoute]:
        async def verify_bundle(bundle: bytes) -> int:
            return (await asyncio.to_thread(verify, bundle, base.policy_key, 0)).number

        def audit_head() -> Mapping[str, Any]:
            return base.audit.head.to_json()

        routes = authority_routes(
            parts.authority,
            self._settings.system.trust_domain,
            verify_bundle=verify_bundle,
            audit_head=audit_head,
        )
        return [*routes, *renewal_routes(parts.enrolment.renewal)]

    # --- certificates of our own listeners ----------------------------------------------------------

    def _load_contexts(self) -> None:
        """Read certificate and key anew; connections from now on get them."""
        folder = self._settings.authority.folder
        pair, root = KeyPair(folder / "server.pem", folder / "server.key"), (folder / "root.pem").read_bytes()
        self._contexts = {
            _CLIENTS_PROVEN: server_context(pair, client_roots=root),
            # Strangers know the root by its hash alone: they are shown it.
            _STRANGERS: server_context(pair, client_roots=None, present=root),
        }

    async def _keep_certificate(self, parts: _AuthorityParts, base: _Base) -> None:
        while True:
            await base.time.sleep(SERVER_CERTIFICATE_CHECKED_EVERY)
            if await renew_server_certificate(parts.authority, self._settings.authority, base.time):
                self._load_contexts()


_CLIENTS_PROVEN, _STRANGERS = "clients proven", "strangers"


def _waits_for(store: SnapshotStore, follower: Follower) -> str:
    if not follower.caught_up.is_set():
        return "the authority's facts"
    return "" if store.current.policy is not None else "a policy revision"


def _listening_socket(settings: GatewayListenerSettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=settings.backlog)
    except OSError as error:
        detail = f"cannot listen: {error.strerror}"
        raise Fault(Reason.SETTING_INVALID, detail, field="gateway.listener") from error


@asynccontextmanager
async def _serve_plain(application: web.Application, host: str, port: int) -> AsyncIterator[None]:
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        yield
    finally:
        await runner.cleanup()


@asynccontextmanager
async def _running(*parts: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run `parts` for as long as the block does. When one fails, the block is cancelled and the failure raised."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(part) for part in parts]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()


async def initialise_all(settings: Settings, workspace: Path) -> Initialised:
    """`sallyport init`: the audit log, the authority, and revision 1 of the policy from `workspace`. What a run that
    was stopped left is taken up again. Raises `Fault(CONFLICT)` when there is an authority."""
    clock = SystemClock()
    make_private_folder(settings.system.state)
    if not settings.audit.key_path.exists():
        MerkleAuditLog.create(settings.audit, clock)
    async with AsyncExitStack() as stack:
        audit = await MerkleAuditLog.open(settings.audit, clock)
        stack.push_async_callback(audit.close)
        database = await Database.open(settings.storage)
        stack.push_async_callback(database.close)
        made = await initialise(settings.authority, database, audit, clock)
        authority = await Authority.open(settings.authority, database, audit, clock)
        least = AttestationClass.HARDWARE if settings.system.is_production else AttestationClass.NONE
        first = await asyncio.to_thread(
            build, read_workspace(workspace, least), 1, int(clock.now()), settings.policy.compile
        )
        bundle = first.signed(load_signing_key(settings.authority.folder / "policy.key"))
        await authority.publish_policy(1, bundle, "init")
    return made
