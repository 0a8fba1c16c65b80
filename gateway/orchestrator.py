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
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from aiohttp import web

from foundation import notify
from foundation.api import ApiRoute, api_application, public_application
from foundation.audit.log import MerkleAuditLog
from foundation.audit.settings import AuditSettings
from foundation.bearer import BearerVerifier
from foundation.callers import CertificateCallers, LocalCallers
from foundation.clock import SystemClock
from foundation.decisionlog.closing import SegmentCloser
from foundation.decisionlog.log import DecisionLog
from foundation.decisionlog.masking import Mask
from foundation.faults import Fault
from foundation.files import make_private_folder, open_key
from foundation.hotstate import HotState, open_hot_state
from foundation.identifiers import Kind, SpiffeId
from foundation.identity import AttestationClass, Revocation, SnapshotNumbers
from foundation.listening import listen, listen_unix
from foundation.logs import configure_logging
from foundation.ports import AuditEvent, ChangeFeed, IdentityDirectory
from foundation.reasons import Reason
from foundation.serving import serve_api, serve_unix
from foundation.storage.database import Database
from foundation.storage.settings import StorageSettings
from foundation.telemetry import Telemetry
from foundation.tls import KeyPair
from foundation.trusttime import TrustTime
from gateway.api.access import AccessApi
from gateway.api.authorise import PolicyAuthorizer
from gateway.api.explaining import Explainer
from gateway.api.operators import OperatorsApi
from gateway.api.settings import ApiSettings
from gateway.api.shadow import ShadowApi
from gateway.api.upstreams import UpstreamsApi
from gateway.broker.siblings import SiblingTable
from gateway.configuration import Configuration, Role, SystemSettings, read_configuration
from gateway.control import Configure
from gateway.directory import SnapshotDirectory
from gateway.enforce import Enforcer, PinnedKey, try_out
from gateway.feed import HttpFeed, UpstreamAuthoritySettings
from gateway.follow import Follower
from gateway.handover import Handover, try_new_code
from gateway.health import HealthSettings, health_app
from gateway.identity import Certificates, Renewal
from gateway.keep import KeptFacts, read_facts
from gateway.live import Watch
from gateway.metrics import ProcessMetrics
from gateway.plane import MASK_KEY, SEATS, SHADOW_FOLDER, SIBLINGS, PlaneSettings
from gateway.proxy.assertion import published_keys
from gateway.proxy.seats import Seats
from gateway.records import recording
from gateway.reloading import changed, needs_restart
from gateway.reporting import Reporter
from gateway.scrape import Scrape
from gateway.shadow.runner import ShadowRunner
from gateway.shelf import RevisionShelf
from gateway.signals import Asked, Signals
from gateway.snapshot import SnapshotStore
from gateway.sockets import Sockets, bind_all
from gateway.supervised import Pool
from gateway.supervisor import Supervisor
from pki.api.attestation import attestation_routes
from pki.api.enrolment import enrolment_routes, renewal_routes
from pki.api.node import node_routes
from pki.api.routes import authority_routes
from pki.api.standing import Standing
from pki.authority import Authority
from pki.bootstrap import Initialised, initialise, renew_calling_certificate, renew_server_certificate
from pki.enrol.judgement import load_trust
from pki.enrol.service import EnrolmentService
from pki.enrol.sessions import KEY_BYTES
from pki.enrol.settings import EnrolmentSettings
from pki.settings import AuthoritySettings
from policies.lifecycle.revision import build
from policies.lifecycle.workspace import read_workspace
from policies.settings import PolicySettings
from policies.signing import load_signing_key, public_pem

SESSION_KEY = "session.key"  # in the state folder: seals enrolments that are under way
CHORES_EVERY = 600.0
MAX_NAMED = 32  # settings that an event of the audit log names
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AuthoritySections:
    """The settings of an authority on this machine."""

    storage: StorageSettings
    authority: AuthoritySettings
    enrolment: EnrolmentSettings

    @classmethod
    def parse(cls, configuration: Configuration, *, production: bool) -> AuthoritySections:
        section = configuration.section
        return cls(
            storage=StorageSettings.parse(section("storage")),
            authority=AuthoritySettings.parse(section("authority")),
            enrolment=EnrolmentSettings.parse(section("enrolment"), production=production),
        )


@dataclass(frozen=True, slots=True)
class Settings:
    """Every part's own settings, parsed before anything starts, so that a wrong one changes nothing. `authority` is its
    own settings where it is on this machine, and where to find it otherwise."""

    configuration: Configuration
    plane: PlaneSettings
    audit: AuditSettings
    authority: AuthoritySections | UpstreamAuthoritySettings
    api: ApiSettings
    health: HealthSettings

    @classmethod
    def parse(cls, configuration: Configuration, role: Role | None = None) -> Settings:
        """`role` goes over the file's. Raises `Fault(SETTING_INVALID | SETTING_UNKNOWN)` with the setting's path."""
        section, plane = configuration.section, PlaneSettings.parse(configuration, role)
        return cls(
            configuration=configuration,
            plane=plane,
            audit=AuditSettings.parse(section("audit")),
            authority=_authority(configuration, plane.system),
            api=ApiSettings.parse(section("api")),
            health=HealthSettings.parse(section("health")),
        )

    @property
    def system(self) -> SystemSettings:
        return self.plane.system

    @property
    def policy(self) -> PolicySettings:
        return self.plane.policy

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
    segments: SegmentCloser
    metrics: ProcessMetrics
    policy_key: PinnedKey
    hot: HotState
    seats: Seats
    siblings: SiblingTable

    def worker_ended(self, number: int) -> None:
        """What it held in the tables that workers share, it holds no more."""
        self.seats.clear(number)
        self.siblings.clear(number)


@dataclass(frozen=True, slots=True)
class _Source:
    """The authority as the rest of this process sees it, here or elsewhere: the feed of facts, our own certificate,
    whom to tell what is in force in all workers, what runs beside, who is who (None: by the snapshot), and what only
    an authority serves."""

    feed: ChangeFeed
    certificates: Certificates
    in_force: Callable[[SnapshotNumbers], None]
    background: tuple[Callable[[], Coroutine[Any, Any, None]], ...]
    directory: IdentityDirectory | None = None
    routes: tuple[ApiRoute, ...] = ()
    enrolment_routes: tuple[ApiRoute, ...] = ()


@dataclass(frozen=True, slots=True)
class _GatewayParts:
    """The facts and who follows them: this process for its API, the workers for the data plane. `kept` is None where
    the authority is here: its database keeps everything."""

    store: SnapshotStore
    enforcer: Enforcer
    follower: Follower
    kept: KeptFacts | None
    workers: Supervisor
    authorizer: PolicyAuthorizer
    operators: OperatorsApi
    upstreams: UpstreamsApi
    access: AccessApi
    shelf: RevisionShelf
    watch: Watch
    shadow: ShadowRunner

    async def follow(self) -> None:
        """Follow the feed, once there are workers to tell."""
        await self.workers.wait_started()
        await self.follower.run()


class _Address(Protocol):
    """Where to listen."""

    @property
    def host(self) -> str: ...

    @property
    def port(self) -> int: ...


class Orchestrator:
    """The main process of the role that the settings name. `left` is what a main process before it left."""

    def __init__(self, settings: Settings, left: Handover | None = None) -> None:
        self._settings = settings
        self._left = left
        self._sockets = Sockets(left.sockets if left else {})
        self.started = asyncio.Event()

    async def run(self, signals: Signals) -> Handover | None:
        """Start everything, serve, and do what `signals` ask, until they ask to stop or to upgrade; then stop
        everything. What the next main process takes over, in an upgrade. Raises `Fault` when a part cannot start."""
        stop = signals.stop
        async with AsyncExitStack() as stack:
            stack.callback(self._sockets.close)
            base = await self._open_base(stack)
            source = await self._open_source(stack, base)
            gateway = self._build_gateway(base, source)
            stack.push_async_callback(gateway.shelf.close)
            stack.push_async_callback(gateway.shadow.close)
            background = [base.time.run, gateway.workers.run, gateway.follow, *source.background]
            if gateway.kept is not None:
                background.append(gateway.kept.run)
            await stack.enter_async_context(_running(*background))
            await self._serve_health(stack, base, source, gateway)
            await _either(gateway.follower.caught_up.wait(), stop.wait())
            await _either(gateway.workers.wait_ready(), stop.wait())
            if stop.is_set():
                return None
            await self._listen(stack, base, source, gateway)
            self._sockets.close_left()
            gateway.workers.accept()
            _settle_memory()
            self.started.set()
            notify.ready()
            return await self._attend(signals, base, source, gateway)

    async def _attend(self, signals: Signals, base: _Base, source: _Source, gateway: _GatewayParts) -> Handover | None:
        """Do what is asked while everything serves."""
        while True:
            match await signals.next():
                case Asked.STOP:
                    notify.stopping()
                    await gateway.workers.drain(self._settings.plane.processes.drain)
                    return None
                case Asked.RELOAD:
                    notify.reloading()
                    await _either(self._reload(base, source, gateway), signals.stop.wait())
                    notify.ready()
                case Asked.UPGRADE:
                    notify.reloading()
                    if await _may_upgrade(base):
                        sequence, workers = await gateway.workers.hand_over()
                        return Handover(sequence, self._sockets.duplicates(), workers)
                    notify.ready()

    async def _reload(self, base: _Base, source: _Source, gateway: _GatewayParts) -> None:
        """Read certificate, policy key and settings anew. What is wrong is told, and what was stays."""
        try:
            source.certificates.load()
            if base.policy_key.load():
                gateway.enforcer.key = base.policy_key.key
            result = await self._apply_settings(base, source, gateway)
        except Fault as fault:
            _LOG.error("the settings stay as they were: %s", fault)
            refused = AuditEvent("settings.refused", "system", fault.field or "settings", fault.reason.code)
            await base.audit.append(refused)
            result = "refused"
        base.metrics.reloaded(result)

    async def _apply_settings(self, base: _Base, source: _Source, gateway: _GatewayParts) -> str:
        before = self._settings
        settings = Settings.parse(read_configuration(before.configuration.path), before.system.role)
        paths = changed(before.configuration.document, settings.configuration.document)
        fixed = [path for path in paths if needs_restart(path)]
        if fixed:
            raise Fault(Reason.SETTING_FIXED, field=", ".join(fixed[:MAX_NAMED]))
        if not paths:
            return "unchanged"
        event = AuditEvent("settings.reloaded", "system", "settings", detail={"changed": list(paths[:MAX_NAMED])})
        await base.audit.append(event)
        await gateway.workers.replace(self._pool(settings, base, source))
        self._settings = settings
        configure_logging(settings.plane.telemetry.log_level)
        return "applied"

    # --- building, in the order of the start ------------------------------------------------------

    async def _open_base(self, stack: AsyncExitStack) -> _Base:
        settings = self._settings
        make_private_folder(settings.system.state)
        telemetry = Telemetry(settings.plane.telemetry)
        stack.callback(telemetry.close)
        time = TrustTime.open(settings.system.state / "trust-time", SystemClock())
        stack.callback(time.close)
        audit = await MerkleAuditLog.open(settings.audit, time)
        stack.push_async_callback(audit.close)
        metrics = ProcessMetrics(telemetry.registry, lambda: time.behind)
        mask = Mask.open(settings.system.state / MASK_KEY)
        segments = SegmentCloser(settings.plane.decisions, audit, metrics.dropped)
        decisions = await DecisionLog.open(settings.plane.decisions, time, segments, metrics.dropped, mask)
        stack.push_async_callback(decisions.close)
        await segments.mend_workers()
        policy_key = PinnedKey(settings.policy_key_file)
        hot = open_hot_state(settings.plane.hot_state, time)
        stack.push_async_callback(hot.close)
        await _refuse_unsafe(hot)
        seats = Seats.shared(settings.system.state / SEATS, 0)
        siblings = SiblingTable.shared(settings.system.state / SIBLINGS, 0)
        if self._left is None:
            seats.reset()
            siblings.reset()
        return _Base(telemetry, time, audit, mask, decisions, segments, metrics, policy_key, hot, seats, siblings)

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
            base.hot,
            base.audit,
            base.time,
            session_key=open_key(self._settings.system.state / SESSION_KEY, KEY_BYTES),
            settings=here.enrolment,
            lifetimes=here.authority.lifetimes,
            trust=load_trust(here.enrolment),
            registry=base.telemetry.registry,
        )
        await renew_server_certificate(authority, here.authority, base.time)
        if self._settings.system.role is Role.ALL:
            await renew_calling_certificate(authority, here.authority, base.time)
        folder = here.authority.folder
        certificates = Certificates(KeyPair(folder / "server.pem", folder / "server.key"), folder / "root.pem")
        certificates.load()
        return _Source(
            feed=authority.feed,
            certificates=certificates,
            in_force=partial(authority.presence.report_here, here.authority.server_identity),
            background=(
                lambda: _do_chores(certificates, authority, here.authority, base.time),
                lambda: authority.node_health.keep_counting(base.metrics.nodes),
            ),
            directory=Standing(authority, enrolment.use),
            routes=(
                *_authority_routes(base, authority, here.authority.trust_domain, self._settings.policy),
                *renewal_routes(enrolment.renewal),
                *attestation_routes(enrolment.attesting),
                *node_routes(
                    authority,
                    here.authority.trust_domain,
                    policy_key=lambda: public_pem(base.policy_key.key),
                    terms=here.authority.bundle,
                ),
            ),
            enrolment_routes=tuple(enrolment_routes(enrolment.enrolment)),
        )

    def _reach_authority(self, base: _Base, elsewhere: UpstreamAuthoritySettings) -> _Source:
        settings, api = self._settings, elsewhere.api
        certificates = Certificates(api.pair, api.ca)
        certificates.load()
        authority = SpiffeId(settings.system.trust_domain, Kind.GATEWAY, elsewhere.identity)
        renew = ("renew", "--if-due", "--config", str(settings.configuration.path), "--renewal", api.address, "--json")
        reporter = Reporter(api.address, authority, certificates.client, base.time)
        return _Source(
            feed=HttpFeed(api.address, authority, certificates.client, base.time.heard),
            certificates=certificates,
            in_force=reporter.in_force,
            background=(Renewal(certificates, renew, base.time).run, reporter.run),
        )

    def _build_gateway(self, base: _Base, source: _Source) -> _GatewayParts:
        settings, store = self._settings, SnapshotStore()
        record = recording(base.decisions, base.time)
        state = settings.system.state
        workers = Supervisor(self._pool(settings, base, source), store, base.time, base.metrics, self._left)
        source.certificates.changed = workers.renewed
        workers.on_force = source.in_force
        enforcer = Enforcer(settings.policy, base.policy_key.key, state / "policy.floor", base.mask, workers.load)
        is_here = isinstance(settings.authority, AuthoritySections)
        kept = None if is_here else KeptFacts(state / "facts", store.present, base.time)
        shelf = RevisionShelf(state / "revisions", lambda: base.policy_key.key, settings.policy)
        follower = Follower(source.feed, store, shelf.keeping(enforcer), base.audit, base.time, kept, workers)
        scrape = Scrape(base.telemetry.registry, lambda: workers.ask("metrics"), lambda: workers.living)
        workers.last_words = scrape.farewell

        def ready() -> str:
            return _waits_for(store, follower)

        watch = Watch(store, base.time, settings.plane.staleness, scrape.gather, workers.ask, ready)
        return _GatewayParts(
            store,
            enforcer,
            follower,
            kept,
            workers,
            PolicyAuthorizer(store, base.time, base.audit, base.decisions.ids, record),
            OperatorsApi(
                store,
                workers.ask,
                base.decisions,
                Explainer(store, base.decisions, shelf.engine),
                base.time,
                ready,
                watch.now,
            ),
            UpstreamsApi(workers.ask, lambda: published_keys(state)),
            AccessApi(store, settings.policy, base.time),
            shelf,
            watch,
            ShadowRunner(state / SHADOW_FOLDER, lambda: base.policy_key.key, settings.policy, base.audit),
        )

    def _pool(self, settings: Settings, base: _Base, source: _Source) -> Pool:
        """The workers; none where no data plane is wanted."""
        plane, count = settings.plane, settings.plane.processes.workers
        if plane.system.role is Role.AUTHORITY:
            count = 0
        where = plane.listener
        name = f"gateway {where.host} {where.port}"
        listening = self._sockets.take(name, lambda: bind_all(where.host, where.port, count))

        def configure(number: int) -> Configure:
            return Configure(
                settings=settings.configuration.raw.decode(),
                path=str(settings.configuration.path),
                number=number,
                of=count,
                now=base.time.now(),
                certificate=str(source.certificates.pair.certificate),
                key=str(source.certificates.pair.key),
                root=str(source.certificates.root),
            )

        return Pool(count, configure, listening, base.segments, plane, base.worker_ended)

    # --- listening ----------------------------------------------------------------------------------

    async def _serve_health(self, stack: AsyncExitStack, base: _Base, source: _Source, gateway: _GatewayParts) -> None:
        def certificate() -> str:
            return "a valid certificate of our own" if source.certificates.expired(base.time.now()) else ""

        waits = {
            "policy and facts": lambda: _waits_for(gateway.store, gateway.follower),
            "workers": lambda: gateway.workers.waits_for,
            "certificate": certificate,
            "listeners": lambda: "" if self.started.is_set() else "the start",
        }
        health = health_app(gateway.watch.gather, waits, gateway.watch.notes)
        settings = self._settings.health
        (listening,) = self._take("health", settings.host, settings.port)
        await stack.enter_async_context(_serve_plain(health, listening))

    async def _listen(self, stack: AsyncExitStack, base: _Base, source: _Source, gateway: _GatewayParts) -> None:
        settings, certificates = self._settings, source.certificates
        domain = settings.system.trust_domain
        routes = [*source.routes, *gateway.operators.routes(), *gateway.upstreams.routes()]
        routes += [*gateway.access.routes(), *ShadowApi(gateway.shadow).routes()]
        bearer = BearerVerifier(settings.api.issuers) if settings.api.issuers else None
        directory = source.directory or SnapshotDirectory(gateway.store)
        callers = CertificateCallers(domain, directory, base.time, bearer)
        api = api_application(routes, callers.identify, gateway.authorizer, clock=base.time)
        local = api_application(routes, LocalCallers(domain).identify, gateway.authorizer, clock=base.time)
        enter = stack.enter_async_context
        if isinstance(settings.authority, AuthoritySections):
            enrolment = public_application(source.enrolment_routes, clock=base.time)
            await enter(self._serve("enrolment", enrolment, certificates.strangers, settings.authority.enrolment))
        await enter(self._serve("api", api, certificates.proven, settings.api))
        path = settings.api.socket
        (unix,) = self._sockets.take(f"local {path}", lambda: [listen_unix(path)])
        await enter(serve_unix(local, path, listening=unix))

    def _serve(
        self, name: str, application: web.Application, context: Callable[[], ssl.SSLContext], where: _Address
    ) -> AbstractAsyncContextManager[Any]:
        host, port = where.host, where.port
        (listening,) = self._take(name, host, port)
        return serve_api(application, context, host, port, listening=listening)

    def _take(self, name: str, host: str, port: int) -> Sequence[socket.socket]:
        return self._sockets.take(f"{name} {host} {port}", lambda: [listen(host, port)])


def _authority_routes(base: _Base, authority: Authority, trust_domain: str, policy: PolicySettings) -> list[ApiRoute]:
    async def verify_bundle(bundle: bytes) -> int:
        return await try_out(bundle, base.policy_key.key, policy)

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
            await renew_server_certificate(authority, settings, time)
            if (settings.folder / "calling.pem").exists():
                await renew_calling_certificate(authority, settings, time)
            certificates.load()
            await authority.ledger.tidy()
        except Fault as fault:
            _LOG.error("a chore failed: %s", fault)


async def _may_upgrade(base: _Base) -> bool:
    """Whether the code that is installed now starts with these settings; audited either way."""
    try:
        await try_new_code()
    except Fault as fault:
        _LOG.error("no upgrade: %s", fault)
        await base.audit.append(AuditEvent("upgrade.refused", "system", "process", fault.reason.code))
        return False
    await base.audit.append(AuditEvent("upgrade.begun", "system", "process"))
    return True


async def _refuse_unsafe(hot: HotState) -> None:
    """A server that may forget stops the start; one that is away does not, and whatever needs it refuses meanwhile."""
    try:
        await hot.generation()
    except Fault as fault:
        if fault.reason is Reason.HOT_STATE_UNSAFE:
            raise


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


async def _either(*awaited: Coroutine[Any, Any, Any]) -> None:
    waits = [asyncio.ensure_future(each) for each in awaited]
    try:
        done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for each in done:
            each.result()
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)


@asynccontextmanager
async def _serve_plain(application: web.Application, listening: socket.socket) -> AsyncIterator[None]:
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        await web.SockSite(runner, listening).start()
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
