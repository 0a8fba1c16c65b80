"""`sallyport agent run`: builds the agent's parts from its settings and runs them until it is told to stop.

Laws held here:
- one thread has the TPM (`agent.tpm`), and every part gets that one. It waits for nobody, so whoever waits for it gets
  an answer: renewal, attestation and sealing ask from threads of their own, a handshake from the event loop, for the
  time of one signature;
- a part that fails takes the agent with it: the service manager starts it anew;
- told to stop, the agent takes no new streams and lets the open ones end within a bound; settings that are read anew
  and are wrong, or cannot change while it runs, change nothing;
- nothing is served without a signed revision on this node (`agent.offer`).
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import logging
import random
import signal
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

from agent.attest import Attester
from agent.authority import AuthorityApi
from agent.bundle import Bundles, Held
from agent.certificate import Certificate, Renewal
from agent.configuration import RunSettings, check_live
from agent.control import Control
from agent.firewall.keeper import Firewall, hosts_of
from agent.firewall.wall import Network, networks_of
from agent.health import HealthReporter, Sources
from agent.keys import tpm_for
from agent.local import LocalDecisions, load_wasm
from agent.offer import NOTHING, Offer, Opening
from agent.outbox import Outbox
from agent.ports import Ports
from agent.reporting import AuthorityReports
from agent.sealed_file import SoftwareLock, TpmLock, Vault
from agent.services import Services
from agent.settings import Address
from agent.store import NodeStore
from agent.supervisor import Supervisor
from agent.tpm import Tpm
from agent.tunnel import Tunnels
from agent.watchdog import Watchdog, WatchedClock
from foundation.clock import Clock
from foundation.decisionlog.ids import DecisionIds
from foundation.faults import Fault
from foundation.reasons import Reason
from foundation.trusttime import TrustTime
from foundation.wire.health import Bundle as BundleHealth
from foundation.wire.health import Outbox as OutboxHealth
from foundation.wire.health import Tunnels as TunnelsHealth
from foundation.wire.records import RecordKind
from foundation.wire.streams import StreamCall

_log = logging.getLogger("sallyport.agent")
_LOOK = 0.1  # seconds between two looks whether the last stream has ended
_OUTBOX = "outbox"  # folders and files of the node's folder
_TRUST_TIME = "trust-time"
_SOFTWARE_LOCK = "bundle.key"

Reload = Callable[[], RunSettings]
Part = Callable[[], Coroutine[Any, Any, None]]
_draw = random.random  # spreads load, guards nothing


class Agent:
    """The parts, joined. `tpm` is open for as long as the agent runs."""

    def __init__(
        self,
        settings: RunSettings,
        store: NodeStore,
        tpm: Tpm | None,
        clock: Clock,
        *,
        authority: Address | None = None,
    ) -> None:
        """`authority` is its API; None leaves out all that asks it."""
        self.settings = settings
        self.stop = asyncio.Event()
        self.offer = NOTHING
        self._clock = clock
        self._tpm = tpm
        node = settings.node
        self.time = TrustTime.open(node.directory / _TRUST_TIME, clock)
        self.services = Services(settings.offers, settings.serving, clock)
        self.services.check = self._check
        self.certificate = Certificate(node, store, store.identity(), tpm, self._certificate_changed)
        self.tunnels = Tunnels(
            settings.gateways, settings.tunnel, self.certificate, self.services, clock, floor=lambda: self.offer.floor
        )
        self.ports = Ports(settings.ports, self.tunnels, clock)
        self.supervisor = Supervisor(settings.supervised, clock, _draw)
        self.outbox = Outbox.open(node.directory / _OUTBOX, self.time, settings.outbox)
        hosts = (*hosts_of(node), *(gateway.host for gateway in settings.gateways))
        self._watched: dict[str, WatchedClock] = {}
        wall_clock = self._watch("firewall") if settings.firewall.enabled else clock
        self.firewall = Firewall(
            settings.firewall, self._networks, hosts, node.directory, wall_clock, record=self._note
        )
        self.bundles: Bundles | None = None
        self.attester: Attester | None = None
        self.renewal = Renewal(self.certificate, self._watch("renewal") if authority else clock, _draw)
        self._parts: dict[str, Part] = {
            "trust time": self.time.run,
            "services": self.services.run,
            "tunnels": self.tunnels.run,
            "ports": self.ports.run,
            "control": Control(node.control, self.status).run,
            "supervisor": self.supervisor.run,
            "firewall": self.firewall.run,
        }
        self._health_due = 0.0  # monotonic, from when on a report that is not delivered is kept
        self.local: LocalDecisions | None = None
        if settings.local.socket is not None:
            self._answer(settings.local.socket)
        if authority is not None:
            self._ask(authority, store)
        parts = {name: watched.is_well for name, watched in self._watched.items()}
        self._parts["watchdog"] = Watchdog(parts, self._status_line, clock).run
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def _answer(self, path: Path) -> None:
        """The parts that decide for programs of this machine. Raises `Fault(EXTRA_MISSING)`."""
        if any(importlib.util.find_spec(name) is None for name in ("httptools", "wasmtime")):
            detail = "local decisions need more: pip install 'sallyport[local]'"
            raise Fault(Reason.EXTRA_MISSING, detail, field="agent.local.socket")
        from agent.local_http import LocalListener  # noqa: PLC0415  # of that extra

        self.local = LocalDecisions(
            self.settings.local.roles,
            load_wasm,
            lambda decision: self.outbox.add(RecordKind.DECISION, decision),
            DecisionIds(self.time),
            self.time,
        )
        self._parts["local decisions"] = self.local.run
        self._parts["local socket"] = LocalListener(path, self.local.decide).run

    def _ask(self, authority: Address, store: NodeStore) -> None:
        """The parts that call the authority."""
        settings, node, clock = self.settings, self.settings.node, self._clock
        api = AuthorityApi(authority, self.certificate.for_calls, node.timeout)
        reports = AuthorityReports(api.report, clock)
        vault = Vault(node.directory, self._lock())
        self.bundles = Bundles(
            self.certificate.id, api.bundle, vault, node.directory, self.time, self._note, settings.bundle
        )
        sources = Sources(
            ends=self._ends,
            clock_skew=reports.clock_skew,
            tunnels=lambda: TunnelsHealth(self._up_count(), len(self.tunnels.tunnels)),
            firewall=self.firewall.standing,
            services=self.supervisor.lives,
            versions=self.supervisor.versions,
            outbox=lambda: OutboxHealth(self.outbox.waiting, self.outbox.used, settings.outbox.max_bytes),
            bundle=self._bundle_health,
        )
        deliver = partial(self._report, reports.deliver)
        health = HealthReporter(settings.health, sources, node.directory, self._watch("health"), _draw, deliver)
        self._parts |= {
            "renewal": self.renewal.run,
            "bundle": self._keep_bundle,
            "outbox": lambda: self.outbox.run(api.deliver),
            "health": health.run,
        }
        if self._tpm is not None:
            watched = self._watch("attestation")
            self.attester = Attester(node, settings.reattestation, store, self._tpm, watched, _draw)
            self._parts["attestation"] = self.attester.run

    async def run(self) -> None:
        """Run the parts until `stop` is set and the open streams have ended. Raises what a part raises, in a group."""
        try:
            async with asyncio.TaskGroup() as parts:
                for name, part in self._parts.items():
                    self._tasks[name] = parts.create_task(part(), name=name)
                await self.stop.wait()
                await self._drain()
                for task in self._tasks.values():
                    task.cancel()
        finally:
            self.outbox.close()
            self.time.close()

    def reload(self, settings: RunSettings) -> None:
        """Use `settings` from now on. Raises `Fault(SETTING_FIXED)`, and nothing has changed."""
        check_live(self.settings, settings)
        self.services.use(settings.offers)
        self._follow(self.bundles.current if self.bundles else None)
        self.tunnels.use(settings.gateways)
        self.ports.use(settings.ports)
        if set(settings.offers) != set(self.settings.offers):
            self.tunnels.renew()  # a greeting says once which services there are
        self.settings = settings
        _log.info("the settings were read anew")

    def status(self) -> dict[str, Any]:
        """How everything stands, for the machine's own people."""
        issued = self.certificate.identity.issued
        certificate_until, attested_until = self._ends()
        held = self.bundles.current if self.bundles else None
        return {
            "node": issued.spiffe_id,
            "certificate": {"not_after": certificate_until, "renew_after": issued.renew_after},
            "attested_until": attested_until,
            "renewal_fault": "" if self.renewal.fault is None else str(self.renewal.fault),
            "floor": self.offer.floor,
            "bundle_age": None if held is None else round(max(self.time.now() - held.bundle.at, 0.0), 3),
            "bundle_fault": "" if self.bundles is None or self.bundles.fault is None else str(self.bundles.fault),
            "firewall": self.firewall.standing().value,
            "outbox": self.outbox.waiting,
            "tunnels": self.tunnels.status(),
            "offers": self.services.status(),
            "ports": self.ports.status(),
        }

    async def _drain(self) -> None:
        _log.info("stopping; %d streams are open", self.tunnels.stream_count)
        self._tasks["ports"].cancel()
        self.services.is_draining = True
        self.tunnels.drain()
        until = self._clock.monotonic() + self.settings.drain
        while self.tunnels.stream_count and self._clock.monotonic() < until:
            await self._clock.sleep(_LOOK)

    # --- what the parts are to each other -----------------------------------------------------------------

    def _certificate_changed(self) -> None:
        self.tunnels.renew()

    async def _keep_bundle(self) -> None:
        if self.bundles is not None:
            await self.bundles.load()
            self.bundles.listen(self._follow)
            await self.bundles.run()

    def _follow(self, held: Held | None) -> None:
        """Offer what `held` says, and nothing without it."""
        self.offer = NOTHING
        if held is not None:
            names = self.services.names
            self.offer = Offer.of(held.compiled.data, held.bundle.record, names, held.number)
        self.services.offers_changed()
        if self.local is not None:
            self.local.use(held)

    def _check(self, call: StreamCall) -> Reason | None:
        if self.bundles is not None and call.revision > self.offer.floor:
            self.bundles.ask()
        refusal = self.offer.refusal(Opening(call.source, call.segments, call.route, call.service, call.revision))
        if refusal is not None:
            self.outbox.add(RecordKind.DECISION, _refused_call(call, refusal, self.offer.floor))
        return refusal

    def _networks(self) -> tuple[Network, ...] | None:
        held = self.bundles.current if self.bundles else None
        return None if held is None else networks_of(held.compiled.data)

    def _note(self, what: str, detail: dict[str, Any]) -> None:
        self.outbox.add(RecordKind.AUDIT, {"event": what, **detail})

    async def _report(self, deliver: Callable[[bytes], Awaitable[None]], report: bytes) -> None:
        """While none can be delivered, one each interval waits with the other records."""
        try:
            await deliver(report)
        except Fault:
            now = self._clock.monotonic()
            if now >= self._health_due:
                self._health_due = now + self.settings.health.interval
                self.outbox.add(RecordKind.HEALTH, json.loads(report))
            raise

    def _watch(self, name: str) -> WatchedClock:
        """A clock for a part that is to be watched."""
        return self._watched.setdefault(name, WatchedClock(self._clock))

    def _ends(self) -> tuple[float, float]:
        """Of the certificate, and of the attestation."""
        issued = self.certificate.identity.issued
        pushed = self.attester.attested_until if self.attester else None
        return issued.not_after, pushed or issued.attested_until

    def _bundle_health(self) -> BundleHealth | None:
        held = self.bundles.current if self.bundles else None
        return None if held is None else BundleHealth(held.number, max(self.time.now() - held.bundle.at, 0.0))

    def _lock(self) -> TpmLock | SoftwareLock:
        if self._tpm is not None:
            return TpmLock(self._tpm, self.settings.bundle.selection)
        return SoftwareLock(self.settings.node.directory / _SOFTWARE_LOCK)

    def _up_count(self) -> int:
        return sum(tunnel.is_up for tunnel in self.tunnels.tunnels)

    def _status_line(self) -> str:
        return f"{self._up_count()} of {len(self.tunnels.tunnels)} gateways, {self.tunnels.stream_count} streams"


def _refused_call(call: StreamCall, refusal: Reason, floor: int) -> dict[str, Any]:
    """For the record: a gateway had permitted this stream by `call.decision`, and this node does not take it."""
    return {
        "id": call.decision,
        "allow": False,
        "reasons": [refusal.code],
        "source": str(call.source),
        "segments": list(call.segments),
        "route": call.route,
        "service": call.service,
        "revision": call.revision,
        "floor": floor,
    }


async def run(settings: RunSettings, reload: Reload, clock: Clock) -> None:
    """Be this node's agent until SIGTERM. SIGHUP reads the settings anew by `reload`. Raises `Fault`: `NOT_ENROLLED`,
    `TPM_UNAVAILABLE`, and what stands against a part's start."""
    store = NodeStore(settings.node.directory, settings.node.pem)
    identity = store.identity()
    store.write_pem(identity)  # a run that was stopped may have left the ones before
    with await asyncio.to_thread(tpm_for, identity.key, settings.node) as tpm:
        agent = Agent(settings, store, tpm, clock, authority=settings.node.renewal)
        _listen_to_signals(agent, reload)
        try:
            await agent.run()
        except BaseExceptionGroup as group:
            raise _first_fault(group) or group from None


def _listen_to_signals(agent: Agent, reload: Reload) -> None:
    def read_anew() -> None:
        try:
            agent.reload(reload())
        except Fault as fault:
            _log.error("the settings stay as they are: %s", fault)

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, agent.stop.set)
    loop.add_signal_handler(signal.SIGHUP, read_anew)


def _first_fault(group: BaseExceptionGroup[BaseException]) -> Fault | None:
    faults = group.subgroup(Fault)
    while isinstance(faults, BaseExceptionGroup):
        faults = faults.exceptions[0]  # type: ignore[assignment]  # a group of groups, or of faults
    return faults
