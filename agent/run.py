"""`sallyport agent run`: builds the agent's parts from its settings and runs them until it is told to stop.

Laws held here:
- one thread has the TPM (`agent.tpm`), and every part gets that one. It waits for nobody, so whoever waits for it gets
  an answer: renewal and attestation ask from threads of their own, a handshake from the event loop, for the time of one
  signature;
- a part that ends takes the agent with it: the service manager starts it anew;
- told to stop, the agent takes no new streams and lets the open ones end within a bound; settings that are read anew
  and are wrong, or cannot change while it runs, change nothing.
"""

from __future__ import annotations

import asyncio
import logging
import random
import signal
from collections.abc import Callable
from typing import Any

from agent.certificate import Certificate, Renewal
from agent.configuration import RunSettings, check_live
from agent.control import Control
from agent.firewall.keeper import Firewall, hosts_of
from agent.firewall.wall import Network
from agent.keys import tpm_for
from agent.ports import Ports
from agent.services import Services
from agent.store import NodeStore
from agent.tpm import Tpm
from agent.tunnel import Tunnels
from agent.watchdog import Watchdog
from foundation.clock import Clock
from foundation.faults import Fault

_log = logging.getLogger("sallyport.agent")
_LOOK = 0.1  # seconds between two looks whether the last stream has ended

Reload = Callable[[], RunSettings]
_draw = random.random  # spreads load, guards nothing


class Agent:
    """The parts, joined. `tpm` is open for as long as the agent runs."""

    def __init__(self, settings: RunSettings, store: NodeStore, tpm: Tpm | None, clock: Clock) -> None:
        self.settings = settings
        self.stop = asyncio.Event()
        self._clock = clock
        node = settings.node
        self.services = Services(settings.offers, settings.serving, clock)
        self.certificate = Certificate(node, store, store.identity(), tpm, self._certificate_changed)
        self.renewal = Renewal(self.certificate, clock, _draw)
        self.tunnels = Tunnels(
            settings.gateways, settings.tunnel, self.certificate, self.services, clock, floor=self._floor
        )
        self.ports = Ports(settings.ports, self.tunnels, clock)
        hosts = (*hosts_of(node), *(each.host for each in settings.gateways))
        self.firewall = Firewall(settings.firewall, self._networks, hosts, node.directory, clock)
        self.control = Control(node.control, self.status)
        self.watchdog = Watchdog({"tunnels": lambda: True}, self._status_line, clock)
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Run the parts until `stop` is set and the open streams have ended. Raises what a part raises, in a group."""
        async with asyncio.TaskGroup() as parts:
            for part in (
                self.services,
                self.tunnels,
                self.ports,
                self.renewal,
                self.firewall,
                self.control,
                self.watchdog,
            ):
                name = type(part).__name__
                self._tasks[name] = parts.create_task(part.run(), name=name)
            await self.stop.wait()
            await self._drain()
            for task in self._tasks.values():
                task.cancel()

    def reload(self, settings: RunSettings) -> None:
        """Use `settings` from now on. Raises `Fault(SETTING_FIXED)`, and nothing has changed."""
        check_live(self.settings, settings)
        self.services.use(settings.offers)
        self.tunnels.use(settings.gateways)
        self.ports.use(settings.ports)
        if set(settings.offers) != set(self.settings.offers):
            self.tunnels.renew()  # a greeting says once which services there are
        self.settings = settings
        _log.info("the settings were read anew")

    def status(self) -> dict[str, Any]:
        """How everything stands, for the machine's own people."""
        issued = self.certificate.identity.issued
        return {
            "node": issued.spiffe_id,
            "certificate": {"not_after": issued.not_after, "renew_after": issued.renew_after},
            "attested_until": issued.attested_until,
            "renewal_fault": "" if self.renewal.fault is None else str(self.renewal.fault),
            "floor": self._floor(),
            "tunnels": self.tunnels.status(),
            "offers": self.services.status(),
            "ports": self.ports.status(),
            "firewall": self.firewall.standing(),
        }

    async def _drain(self) -> None:
        _log.info("stopping; %d streams are open", self.tunnels.stream_count)
        self._tasks["Ports"].cancel()
        self.services.is_draining = True
        self.tunnels.drain()
        until = self._clock.monotonic() + self.settings.drain
        while self.tunnels.stream_count and self._clock.monotonic() < until:
            await self._clock.sleep(_LOOK)

    def _certificate_changed(self) -> None:
        self.tunnels.renew()

    def _floor(self) -> int:
        """The highest policy revision that this node has had."""
        return 0

    def _networks(self) -> tuple[Network, ...] | None:
        """Where nodes live, by the newest revision that this node has had."""
        return None

    def _status_line(self) -> str:
        up = sum(tunnel.is_up for tunnel in self.tunnels.tunnels)
        return f"{up} of {len(self.tunnels.tunnels)} gateways, {self.tunnels.stream_count} streams"


async def run(settings: RunSettings, reload: Reload, clock: Clock) -> None:
    """Be this node's agent until SIGTERM. SIGHUP reads the settings anew by `reload`. Raises `Fault`: `NOT_ENROLLED`,
    `TPM_UNAVAILABLE`, and what stands against a part's start."""
    store = NodeStore(settings.node.directory, settings.node.pem)
    identity = store.identity()
    store.write_pem(identity)  # a run that was stopped may have left the ones before
    with await asyncio.to_thread(tpm_for, identity.key, settings.node) as tpm:
        agent = Agent(settings, store, tpm, clock)
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
