"""The data plane of one process: its settings, and how its parts are joined. The one place where `ConnectionServices`
is built."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from foundation.clock import Clock
from foundation.decisionlog.log import DecisionLog
from foundation.decisionlog.settings import DecisionLogSettings
from foundation.fields import Fields
from foundation.hotstate import HotStateSettings, open_hot_state
from foundation.telemetry import Telemetry, TelemetrySettings
from foundation.wire.tunnel import PROTOCOL, RELAY_PROTOCOL
from gateway.access.log import AccessLog
from gateway.access.settings import AccessLogSettings
from gateway.broker.parts import BrokerParts
from gateway.broker.settings import BrokerSettings
from gateway.broker.siblings import SiblingTable
from gateway.configuration import Configuration, Role, SystemSettings
from gateway.identity import Certificates
from gateway.metrics import GatewayMetrics
from gateway.proxy.assertion import AssertionKey, Assertions
from gateway.proxy.buckets import Buckets
from gateway.proxy.decide import Decider
from gateway.proxy.http2_budget import Http2Settings
from gateway.proxy.listener import Listener
from gateway.proxy.oblige import Obligations
from gateway.proxy.overload import Overload, OverloadSettings
from gateway.proxy.record import Records
from gateway.proxy.seats import Seats
from gateway.proxy.services import ConnectionServices, GatewayListenerSettings
from gateway.proxy.upstream import Upstreams, UpstreamSettings
from gateway.records import recording_cuts
from gateway.shadow.tap import ShadowTap
from gateway.snapshot import SnapshotStore
from gateway.streams.registry import Registry
from gateway.streams.timing import CutTimes, StreamSettings
from gateway.upstreams.telling import PoolMetrics
from gateway.upstreams.trust import UpstreamTrust
from policies.settings import PolicySettings
from policies.staleness import StalenessSettings

# In the state folder:
MASK_KEY = "decision-mask.key"
SEATS = "seats"  # how many connections identities have, at all workers
SIBLINGS = "siblings"  # which worker holds which node's tunnel
RELAY_FOLDER = "relay"  # the sockets by which workers reach each other's tunnels
RATES = "rates"  # what identities have used up of their rates, for all workers
SHADOW_FOLDER = "shadow"


@dataclass(frozen=True, slots=True)
class ProcessSettings:
    """What stands directly in `[gateway]`. Times in seconds.

    workers: how many processes carry the data plane. silence: how long a worker may say nothing while a change of
    trust is not in force in it; then it is killed, and with it what it carries. drain: how long what is under way may
    take to end when everything stops. retire: how long streams of a worker that was replaced may go on.
    """

    workers: int
    silence: float = 0.25
    drain: float = 10.0
    retire: float = 3600.0

    @classmethod
    def parse(cls, fields: Fields) -> ProcessSettings:
        cores = len(os.sched_getaffinity(0))
        workers = fields.integer("workers", 0, most=256)
        settings = cls(
            workers=workers or max(1, cores),
            silence=fields.duration("silence", "250ms"),
            drain=fields.duration("drain", "10s"),
            retire=fields.duration("retire", "1h"),
        )
        if settings.silence < 0.05:
            raise fields.fault("silence", "expected at least 50ms")
        return settings


@dataclass(frozen=True, slots=True)
class PlaneSettings:
    """What a worker needs to know, and no more."""

    system: SystemSettings
    telemetry: TelemetrySettings
    decisions: DecisionLogSettings
    hot_state: HotStateSettings
    policy: PolicySettings
    processes: ProcessSettings
    listener: GatewayListenerSettings
    http2: Http2Settings
    upstreams: UpstreamSettings
    staleness: StalenessSettings
    overload: OverloadSettings
    streams: StreamSettings
    broker: BrokerSettings
    access: AccessLogSettings

    @property
    def protocols(self) -> tuple[str, ...]:
        """What the data plane's listener offers by ALPN (RFC 7301), the best first."""
        tunnels = (PROTOCOL, RELAY_PROTOCOL) if self.broker.enabled else ()
        return (*tunnels, *self.http2.protocols)

    @classmethod
    def parse(cls, configuration: Configuration, role: Role | None = None) -> PlaneSettings:
        """`role` goes over the file's. Raises `Fault(SETTING_INVALID | SETTING_UNKNOWN)` with the setting's path."""
        section = configuration.section
        system, gateway = SystemSettings.parse(section("sallyport")), section("gateway")
        settings = cls(
            system=replace(system, role=role or system.role),
            telemetry=TelemetrySettings.parse(section("telemetry")),
            decisions=DecisionLogSettings.parse(section("decisions")),
            hot_state=HotStateSettings.parse(section("hotstate")),
            policy=PolicySettings.parse(section("policy")),
            processes=ProcessSettings.parse(gateway),
            listener=GatewayListenerSettings.parse(gateway.section("listener", optional=True)),
            http2=Http2Settings.parse(gateway.section("http2", optional=True)),
            upstreams=UpstreamSettings.parse(gateway.section("upstreams", optional=True)),
            staleness=StalenessSettings.parse(gateway.section("staleness", optional=True)),
            overload=OverloadSettings.parse(gateway.section("overload", optional=True)),
            streams=StreamSettings.parse(gateway.section("streams", optional=True)),
            broker=BrokerSettings.parse(gateway.section("broker", optional=True)),
            access=AccessLogSettings.parse(section("access_log")),
        )
        gateway.finish()
        return settings

    def share(self, of: int) -> PlaneSettings:
        """The settings of one of `of` workers: what bounds the whole gateway is parted."""
        listener = self.listener
        own = replace(
            listener,
            connections=-(-listener.connections // of),
            handshakes=-(-listener.handshakes // of),
            source_handshakes=-(-listener.source_handshakes // of),
            source_burst=-(-listener.source_burst // of),
            memory=-(-listener.memory // of),
        )
        overload = replace(self.overload, exchanges=-(-self.overload.exchanges // of))
        return replace(self, listener=own, overload=overload)


@dataclass(frozen=True, slots=True)
class Plane:
    """The parts of one worker that others call."""

    store: SnapshotStore
    registry: Registry
    upstreams: Upstreams
    listener: Listener
    metrics: GatewayMetrics
    telemetry: Telemetry
    cuts: CutTimes
    access: AccessLog | None
    services: ConnectionServices
    broker: BrokerParts | None


def build_plane(
    settings: PlaneSettings,
    certificates: Certificates,
    time: Clock,
    decisions: DecisionLog,
    telemetry: Telemetry,
    metrics: GatewayMetrics,
    number: int,
) -> Plane:
    """`certificates` are asked for each new connection, from clients and to upstreams; `number` is the worker's. Raises
    `Fault`."""
    store = SnapshotStore()
    rates = Buckets.shared(settings.system.state / RATES)
    shadow = ShadowTap(settings.system.state / SHADOW_FOLDER)
    decider = Decider(store, time, settings.staleness, Obligations(time, rates), decisions.ids, shadow)
    cuts = CutTimes(telemetry.registry, settings.streams, time)
    registry = Registry(time, recording_cuts(decisions, time), decider, cuts, store.renewals)
    upstreams = Upstreams(settings.upstreams, time, UpstreamTrust(time, certificates))
    store.listen(registry.changed)
    store.listen(upstreams.changed)
    metrics.watch(store, registry)
    path = settings.access.path
    access = None if path is None else AccessLog(path, settings.access, time, metrics.unlogged)
    PoolMetrics(telemetry.registry, upstreams.overview)
    broker = _build_broker(settings, store, certificates, time, number)
    if broker is not None:
        metrics.watch_tunnels(lambda: broker.broker.open_count)
    services = ConnectionServices(
        settings.listener,
        settings.system.trust_domain,
        time,
        lambda: store.current.policy.routes if store.current.policy else None,
        decider,
        registry,
        Records(decisions),
        upstreams,
        Assertions(lambda: certificates.spiffe_id, AssertionKey.open(settings.system.state), time),
        metrics,
        telemetry.span,
        None if access is None else access.ended,
        Overload(settings.overload),
        settings.http2,
        Seats.shared(settings.system.state / SEATS, number),
        {} if broker is None else broker.protocols,
    )
    listener = Listener(certificates.data_plane, services)
    return Plane(store, registry, upstreams, listener, metrics, telemetry, cuts, access, services, broker)


def _build_broker(
    settings: PlaneSettings, store: SnapshotStore, certificates: Certificates, time: Clock, number: int
) -> BrokerParts | None:
    if not settings.broker.enabled:
        return None
    state = settings.system.state
    table = SiblingTable.shared(state / SIBLINGS, number)
    hot = None
    if settings.hot_state.redis is not None and settings.broker.relay:
        hot = open_hot_state(settings.hot_state, time)
    return BrokerParts(settings.broker, table, state / RELAY_FOLDER, number, store, certificates, time, hot)
