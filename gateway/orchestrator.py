"""Builds every part from the settings, starts them in order, stops them in reverse. The only place that joins packages.

Order: records → authority (here, or the way to it) → facts and policy → data plane → listeners → health. A part that
cannot start stops the start, with its reason. Whatever runs is owned by one task group: when one part fails, all stop.

| role | authority | facts come from | listeners |
|---|---|---|---|
| all | here | its feed, in process | enrolment, API, data plane |
| authority | here | its feed, in process: its API is decided by policy too | enrolment, API |
| gateway | elsewhere | its feed over HTTPS, and what was kept on disk | API of operators, data plane |
"""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
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
from foundation.decisionlog.masking import Mask
from foundation.decisionlog.settings import DecisionLogSettings
from foundation.faults import Fault
from foundation.files import make_private_folder
from foundation.hotstate.memory import HotStateSettings, MemoryHotState
from foundation.identifiers import Kind, SpiffeId
from foundation.identity import AttestationClass, Revocation
from foundation.ports import ChangeFeed, IdentityDirectory
from foundation.reasons import Reason
from foundation.serving import serve_api, serve_unix
from foundation.storage.database import Database
from foundation.storage.settings import StorageSettings
from foundation.telemetry import Telemetry, TelemetrySettings
from foundation.tls import KeyPair
from foundation.trusttime import TrustTime
from gateway.api.authorise import PolicyAuthorizer
from gateway.api.explaining import Explainer
from gateway.api.operators import OperatorsApi
from gateway.api.settings import ApiSettings
from gateway.configuration import Configuration, Role, SystemSettings
from gateway.directory import SnapshotDirectory
from gateway.enforce import Enforcer, try_out
from gateway.feed import HttpFeed, UpstreamAuthoritySettings
from gateway.fleet.staleness import StalenessSettings
from gateway.follow import Follower
from gateway.health import HealthSettings, health_app
from gateway.identity import Certificates, Renewal
from gateway.keep import KeptFacts, read_facts
from gateway.metrics import GatewayMetrics
from gateway.proxy.decide import Decider
from gateway.proxy.http2_budget import Http2Settings
from gateway.proxy.listener import Listener
from gateway.proxy.oblige import Obligations
from gateway.proxy.overload import Overload, OverloadSettings
from gateway.proxy.record import Records
from gateway.proxy.services import ConnectionServices, GatewayListenerSettings
from gateway.proxy.upstream import Upstreams, UpstreamSettings
from gateway.records import recording, recording_cuts
from gateway.shelf import RevisionShelf
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
from policies.lifecycle.revision import build
from policies.lifecycle.signing import VerifyingKey, load_signing_key, parse_verifying_key
from policies.lifecycle.workspace import read_workspace
from policies.settings import PolicySettings

CHORES_EVERY = 600.0
DRAIN_SECONDS = 10.0
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AuthoritySections:
    """The settings of an authority on this machine."""

    storage: StorageSettings
    hot_state: HotStateSettings
    authority: AuthoritySettings
    enrolment: EnrolmentSettings

    @classmethod
    def parse(cls, configuration: Configuration, *, production: bool) -> AuthoritySections:
        section = configuration.section
        return cls(
            storage=StorageSettings.parse(section("storage")),
            hot_state=HotStateSettings.parse(section("hotstate")),
            authority=AuthoritySettings.parse(section("authority")),
            enrolment=EnrolmentSettings.parse(section("enrolment"), production=production),
        )


@dataclass(frozen=True, slots=True)
class Settings:
    """Every part's own settings, parsed before anything starts, so that a wrong one changes nothing. `authority` is its
    own settings where it is on this machine, and where to find it otherwise."""

    path: Path
    system: SystemSettings
    telemetry: TelemetrySettings
    audit: AuditSettings
    decisions: DecisionLogSettings
    authority: AuthoritySections | UpstreamAuthoritySettings
    api: ApiSettings
    policy: PolicySettings
    listener: GatewayListenerSettings
    http2: Http2Settings
    upstreams: UpstreamSettings
    staleness: StalenessSettings
    overload: OverloadSettings
    health: HealthSettings

    @classmethod
    def parse(cls, configuration: Configuration, role: Role | None = None) -> Settings:
        """`role` goes over the file's. Raises `Fault(SETTING_INVALID | SETTING_UNKNOWN)` with the setting's path."""
        section = configuration.section
        system = SystemSettings.parse(section("sallyport"))
        system = replace(system, role=role or system.role)
        gateway = section("gateway")
        settings = cls(
            path=configuration.path,
            system=system,
            telemetry=TelemetrySettings.parse(section("telemetry")),
            audit=AuditSettings.parse(section("audit")),
            decisions=DecisionLogSettings.parse(section("decisions")),
            authority=_authority(configuration, system),
            api=ApiSettings.parse(section("api")),
            policy=PolicySettings.parse(section("policy")),
            listener=GatewayListenerSettings.parse(gateway.section("listener", optional=True)),
            http2=Http2Settings.parse(gateway.section("http2", optional=True)),
            upstreams=UpstreamSettings.parse(gateway.section("upstreams", optional=True)),
            staleness=StalenessSettings.parse(gateway.section("staleness", optional=True)),
            overload=OverloadSettings.parse(gateway.section("overload", optional=True)),
            health=HealthSettings.parse(section("health")),
        )
        gateway.finish()
        return settings

    @property
    def authority_sections(self) -> AuthoritySections:
        """Raises `Fault(SETTING_INVALID)` where this machine holds no authority."""
        if isinstance(self.authority, UpstreamAuthoritySettings):
            raise Fault(Reason.SETTING_INVALID, "the authority is elsewhere", field="sallyport.role")
        return self.authority

    @property
    def policy_key_file(self) -> Path:
        if isinstance(self.authority, UpstreamAuthoritySettings):
            return self.authority.policy_key
        return self.authority.authority.folder / "policy.pub"


def _authority(configuration: Configuration, system: SystemSettings) -> AuthoritySections | UpstreamAuthoritySettings:
    if system.role is Role.GATEWAY:
        return UpstreamAuthoritySettings.parse(configuration.section("upstream_authority"))
    return AuthoritySections.parse(configuration, production=system.is_production)


@dataclass(frozen=True, slots=True)
class _Base:
    """What everything else stands on."""

    telemetry: Telemetry
    time: TrustTime
    audit: MerkleAuditLog
    mask: Mask
    decisions: DecisionLog
    metrics: GatewayMetrics
    policy_key: VerifyingKey


@dataclass(frozen=True, slots=True)
class _Source:
    """The authority as the rest of this process sees it, here or elsewhere: the feed of facts, who is who (None: by the
    snapshot), our own certificate and what renews it, and what only an authority serves."""

    feed: ChangeFeed
    certificates: Certificates
    keep_certificate: Callable[[], Coroutine[Any, Any, None]]
    directory: IdentityDirectory | None = None
    routes: tuple[ApiRoute, ...] = ()
    enrolment_routes: tuple[ApiRoute, ...] = ()


@dataclass(frozen=True, slots=True)
class _GatewayParts:
    """Decisions over one snapshot store, and the data plane. `kept` is None where the authority is here: its database
    keeps everything."""

    store: SnapshotStore
    follower: Follower
    kept: KeptFacts | None
    registry: Registry
    listener: Listener
    authorizer: PolicyAuthorizer
    operators: OperatorsApi
    shelf: RevisionShelf


class Orchestrator:
    """One process of the role that the settings name. `run` returns when `stop` is set and everything has ended."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.started = asyncio.Event()

    async def run(self, stop: asyncio.Event) -> None:
        """Start everything, serve until `stop`, drain, stop everything. Raises `Fault` when a part cannot start."""
        async with AsyncExitStack() as stack:
            base = await self._open_base(stack)
            source = await self._open_source(stack, base)
            gateway = self._build_gateway(base, source)
            stack.push_async_callback(gateway.shelf.close)
            background = [base.time.run, gateway.follower.run, gateway.registry.run, source.keep_certificate]
            if gateway.kept is not None:
                background.append(gateway.kept.run)
            await stack.enter_async_context(_running(*background))
            await self._serve_health(stack, base, source, gateway)
            await _either(gateway.follower.caught_up, stop)
            if stop.is_set():
                return
            await self._listen(stack, base, source, gateway)
            _settle_memory()
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
        mask = Mask.open(settings.system.state / "decision-mask.key")
        decisions = await DecisionLog.open(settings.decisions, time, audit, metrics.dropped, mask)
        stack.push_async_callback(decisions.close)
        policy_key = parse_verifying_key(_read(settings.policy_key_file))
        return _Base(telemetry, time, audit, mask, decisions, metrics, policy_key)

    async def _open_source(self, stack: AsyncExitStack, base: _Base) -> _Source:
        settings = self._settings.authority
        if isinstance(settings, UpstreamAuthoritySettings):
            return self._reach_authority(base, settings)
        return await self._open_authority(stack, base, settings)

    async def _open_authority(self, stack: AsyncExitStack, base: _Base, here: AuthoritySections) -> _Source:
        database = await Database.open(here.storage)
        stack.push_async_callback(database.close)
        authority = await Authority.open(here.authority, database, base.audit, base.time)
        enrolment = EnrolmentService.make(
            authority,
            MemoryHotState(here.hot_state, base.time),
            base.audit,
            base.time,
            settings=here.enrolment,
            lifetimes=here.authority.lifetimes,
            trust=load_trust(here.enrolment),
        )
        await renew_server_certificate(authority, here.authority, base.time)
        folder, protocols = here.authority.folder, self._settings.http2.protocols
        pair = KeyPair(folder / "server.pem", folder / "server.key")
        certificates = Certificates(pair, folder / "root.pem", protocols)
        certificates.load()
        return _Source(
            feed=authority.feed,
            certificates=certificates,
            keep_certificate=lambda: _do_chores(certificates, authority, here.authority, base.time),
            directory=Standing(authority, enrolment.use),
            routes=(
                *_authority_routes(base, authority, here.authority.trust_domain, self._settings.policy),
                *renewal_routes(enrolment.renewal),
            ),
            enrolment_routes=tuple(enrolment_routes(enrolment.enrolment)),
        )

    def _reach_authority(self, base: _Base, elsewhere: UpstreamAuthoritySettings) -> _Source:
        settings, api = self._settings, elsewhere.api
        certificates = Certificates(api.pair, api.ca, settings.http2.protocols)
        certificates.load()
        authority = SpiffeId(settings.system.trust_domain, Kind.GATEWAY, elsewhere.identity)
        renew = ("renew", "--if-due", "--config", str(settings.path), "--renewal", api.address, "--json")
        return _Source(
            feed=HttpFeed(api.address, authority, certificates.client, base.time.heard),
            certificates=certificates,
            keep_certificate=Renewal(certificates, renew, base.time).run,
        )

    def _build_gateway(self, base: _Base, source: _Source) -> _GatewayParts:
        settings, store = self._settings, SnapshotStore()
        record = recording(base.decisions, base.time)
        decider = Decider(store, base.time, settings.staleness, Obligations(base.time), base.decisions.ids)
        registry = Registry(base.time, recording_cuts(base.decisions, base.time), decider)
        store.listen(registry.changed)
        base.metrics.watch(store, registry, lambda: base.time.behind)
        state = settings.system.state
        enforcer = Enforcer(settings.policy, base.policy_key, state / "policy.floor", base.mask)
        is_here = isinstance(settings.authority, AuthoritySections)
        kept = None if is_here else KeptFacts(state / "facts", store.present, base.time)
        shelf = RevisionShelf(state / "revisions", base.policy_key, settings.policy)
        follower = Follower(source.feed, store, shelf.keeping(enforcer), base.audit, base.time, kept)
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
            base.telemetry.span,
            Overload(settings.overload),
            settings.http2,
        )
        return _GatewayParts(
            store,
            follower,
            kept,
            registry,
            Listener(source.certificates.data_plane, services),
            PolicyAuthorizer(store, base.time, base.audit, base.decisions.ids, record),
            OperatorsApi(
                store,
                registry,
                base.decisions,
                Explainer(store, base.decisions, shelf.engine),
                base.time,
                lambda: _waits_for(store, follower),
            ),
            shelf,
        )

    # --- listening ----------------------------------------------------------------------------------

    async def _serve_health(self, stack: AsyncExitStack, base: _Base, source: _Source, gateway: _GatewayParts) -> None:
        def certificate() -> str:
            return "a valid certificate of our own" if source.certificates.expired(base.time.now()) else ""

        waits = {
            "policy and facts": lambda: _waits_for(gateway.store, gateway.follower),
            "certificate": certificate,
            "listeners": lambda: "" if self.started.is_set() else "the start",
        }
        health = health_app(base.telemetry.registry, waits)
        settings = self._settings.health
        await stack.enter_async_context(_serve_plain(health, settings.host, settings.port))

    async def _listen(self, stack: AsyncExitStack, base: _Base, source: _Source, gateway: _GatewayParts) -> None:
        settings, certificates = self._settings, source.certificates
        domain = settings.system.trust_domain
        routes = [*source.routes, *gateway.operators.routes()]
        bearer = BearerVerifier(settings.api.issuers) if settings.api.issuers else None
        directory = source.directory or SnapshotDirectory(gateway.store)
        callers = CertificateCallers(domain, directory, base.time, bearer)
        api = api_application(routes, callers.identify, gateway.authorizer, clock=base.time)
        local = api_application(routes, LocalCallers(domain).identify, gateway.authorizer, clock=base.time)
        enter = stack.enter_async_context
        if isinstance(settings.authority, AuthoritySections):
            enrolment, where = (
                public_application(source.enrolment_routes, clock=base.time),
                settings.authority.enrolment,
            )
            await enter(serve_api(enrolment, certificates.strangers, where.host, where.port))
        await enter(serve_api(api, certificates.proven, settings.api.host, settings.api.port))
        await enter(serve_unix(local, settings.api.socket))
        stack.push_async_callback(gateway.listener.close)
        if settings.system.role is not Role.AUTHORITY:
            gateway.listener.start(_listening_socket(settings.listener))


def _authority_routes(base: _Base, authority: Authority, trust_domain: str, policy: PolicySettings) -> list[ApiRoute]:
    async def verify_bundle(bundle: bytes) -> int:
        return await try_out(bundle, base.policy_key, policy)

    def audit_head() -> Mapping[str, Any]:
        return base.audit.head.to_json()

    return authority_routes(authority, trust_domain, verify_bundle=verify_bundle, audit_head=audit_head)


async def _do_chores(
    certificates: Certificates, authority: Authority, settings: AuthoritySettings, time: TrustTime
) -> None:
    """Renew the listeners' certificate before it ends, and drop what the ledger need not keep. What fails now is tried
    again."""
    while True:
        await time.sleep(CHORES_EVERY)
        try:
            if await renew_server_certificate(authority, settings, time):
                certificates.load()
            await authority.ledger.tidy()
        except Fault as fault:
            _LOG.error("a chore failed: %s", fault)


def _settle_memory() -> None:
    """What was made by now stays. The garbage collector need not look through it again: that would stop every
    connection for as long as it takes."""
    gc.collect()
    gc.freeze()


def _waits_for(store: SnapshotStore, follower: Follower) -> str:
    """What is missing before this process can decide; empty when nothing is."""
    if not follower.caught_up.is_set():
        return "the authority's facts"
    return "" if store.current.policy is not None else "a policy revision"


async def _either(*events: asyncio.Event) -> None:
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Fault(Reason.FILE_UNREADABLE, error.strerror or "unreadable", field=str(path)) from error


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
async def _running(*parts: Callable[[], Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    """Run `parts` for as long as the block does. When one fails, the block is cancelled and the failure raised."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(part()) for part in parts]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()


async def initialise_all(settings: Settings, workspace: Path) -> Initialised:
    """`sallyport init`: the audit log, the authority, and revision 1 of the policy from `workspace`. What a run that
    was stopped left is taken up again. Raises `Fault(CONFLICT)` when there is an authority."""
    clock, here = SystemClock(), settings.authority_sections
    make_private_folder(settings.system.state)
    if not settings.audit.key_path.exists():
        MerkleAuditLog.create(settings.audit, clock)
    async with AsyncExitStack() as stack:
        audit = await MerkleAuditLog.open(settings.audit, clock)
        stack.push_async_callback(audit.close)
        database = await Database.open(here.storage)
        stack.push_async_callback(database.close)
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
    clock, here = SystemClock(), settings.authority_sections
    lost = [each for path in facts for each in read_facts(path) if isinstance(each, Revocation)]
    async with AsyncExitStack() as stack:
        audit = await MerkleAuditLog.open(settings.audit, clock)
        stack.push_async_callback(audit.close)
        database = await Database.open(here.storage)
        stack.push_async_callback(database.close)
        authority = await Authority.open(here.authority, database, audit, clock)
        await authority.raise_numbers("recover")
        return await authority.revocations.merge(tuple(lost), "recover")
