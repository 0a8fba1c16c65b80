"""Reports this node's health: reads the machine and asks the parts, puts it together, and has it delivered.

A report is due every `interval`, less up to a quarter of it by lot; the first, and what goes wrong or comes right,
within `SPREAD_SECONDS`, by lot too: what befalls a fleet befalls ten thousand nodes at once, and the authority with
them. One that cannot be delivered is followed by a newer one after a pause that doubles, up to the interval. The newest
that was made is kept on disk, for `sallyport node health`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from agent import readings
from agent.restarts import Life, RestartPolicy, next_pause
from foundation.clock import Clock
from foundation.faults import Fault
from foundation.fields import Fields
from foundation.files import read_bounded, write_secret
from foundation.wire.health import (
    LONGEST_INTERVAL,
    MAX_DISKS,
    MAX_REPORT_BYTES,
    MAX_TEXT,
    SHORTEST_INTERVAL,
    Ailment,
    Bundle,
    Firewall,
    HealthReport,
    Outbox,
    ServiceHealth,
    Tunnels,
    ailments,
)

LOOK_SECONDS = 15.0
SPREAD_SECONDS = 60.0
NEWEST = "health.json"
"""The newest report's file, in the node's folder."""
_log = logging.getLogger("sallyport.agent.health")

Deliver = Callable[[bytes], Awaitable[None]]
"""Has a report delivered. Raises `Fault` when it could not."""


@dataclass(frozen=True, slots=True)
class HealthSettings:
    """Section `[agent.health]`. `interval` in seconds; `disks` are paths whose file systems are reported."""

    interval: float = 300.0
    disks: tuple[Path, ...] = (Path("/"),)

    @classmethod
    def parse(cls, fields: Fields) -> HealthSettings:
        """Raises `Fault(SETTING_INVALID | SETTING_UNKNOWN)`."""
        interval = fields.duration("interval", "5m")
        if not SHORTEST_INTERVAL <= interval <= LONGEST_INTERVAL:
            raise fields.fault("interval", "expected 1s to 1d")
        settings = cls(interval, tuple(Path(path) for path in fields.texts("disks", ("/",), most=MAX_DISKS)))
        fields.finish()
        return settings


def _nothing() -> None:
    return None


@dataclass(frozen=True, slots=True)
class Sources:
    """Whom to ask for what the kernel does not know, on the event loop; each answers at once, with None or nothing
    where it cannot tell. `ends` gives the ends of certificate and attestation, `versions` those of services, by their
    names."""

    ends: Callable[[], tuple[float | None, float | None]] = lambda: (None, None)
    clock_skew: Callable[[], float | None] = _nothing
    tunnels: Callable[[], Tunnels | None] = _nothing
    firewall: Callable[[], Firewall | None] = _nothing
    services: Callable[[], Mapping[str, Life]] = dict
    versions: Callable[[], Mapping[str, str]] = dict
    outbox: Callable[[], Outbox | None] = _nothing
    bundle: Callable[[], Bundle | None] = _nothing


class HealthReporter:
    """Make one with what it asks and how it delivers, and keep `run` running. `draw` gives a number from [0, 1)."""

    def __init__(
        self,
        settings: HealthSettings,
        sources: Sources,
        folder: Path,
        clock: Clock,
        draw: Callable[[], float],
        deliver: Deliver,
    ) -> None:
        self._settings = settings
        self._sources = sources
        self._file = folder / NEWEST
        self._clock = clock
        self._draw = draw
        self._deliver = deliver
        self._seen: tuple[Ailment, ...] = ()
        self._failures = 0
        self._due = clock.monotonic() + self._spread()

    async def run(self) -> None:
        """Report until cancelled."""
        while True:
            await self._clock.sleep(min(LOOK_SECONDS, self._settings.interval) * (1 - self._draw() / 4))
            await self._look()

    async def _look(self) -> None:
        at = self._clock.now()
        machine = await asyncio.to_thread(take, self._settings, at)
        report = with_parts(machine, self._sources)
        wrong = ailments(report)
        if wrong != self._seen and not self._failures:
            self._due = min(self._due, self._clock.monotonic() + self._spread())
        self._seen = wrong
        if self._clock.monotonic() < self._due:
            return
        try:
            await asyncio.to_thread(write_secret, self._file, report.encode())
            await self._deliver(report.encode())
        except (Fault, OSError) as error:
            _log.warning("no health report was delivered", extra={"why": str(error)})
            self._failures += 1
            pause = next_pause(self._patience, self._failures, self._draw())
        else:
            self._failures = 0
            pause = self._settings.interval * (1 - self._draw() / 4)
        self._due = self._clock.monotonic() + pause

    @property
    def _patience(self) -> RestartPolicy:
        interval = self._settings.interval
        return RestartPolicy(least=min(SPREAD_SECONDS / 2, interval), most=interval)

    def _spread(self) -> float:
        return self._draw() * min(SPREAD_SECONDS, self._settings.interval)


def take(settings: HealthSettings, at: float, root: Path = readings.ROOT) -> HealthReport:
    """A report of what the kernel knows. Blocks: it reads files."""
    return HealthReport(
        at=at,
        interval=settings.interval,
        versions=readings.read_versions(root),
        boot_id=readings.read_boot_id(root),
        uptime=readings.read_uptime(root),
        disks=readings.read_disks(settings.disks),
        memory=readings.read_memory(root),
        load=readings.read_load(root),
        temperatures=readings.read_temperatures(root),
    )


def with_parts(machine: HealthReport, sources: Sources) -> HealthReport:
    """`machine`, and what the agent's parts know."""
    certificate_until, attested_until = sources.ends()
    versions = {f"service/{name}": text[:MAX_TEXT] for name, text in sources.versions().items()}
    return replace(
        machine,
        versions=dict(machine.versions) | versions,
        clock_skew=sources.clock_skew(),
        certificate_until=certificate_until,
        attested_until=attested_until,
        tunnels=sources.tunnels(),
        firewall=sources.firewall(),
        services=tuple(service_health(name, life) for name, life in sources.services().items()),
        outbox=sources.outbox(),
        bundle=sources.bundle(),
    )


def service_health(name: str, life: Life) -> ServiceHealth:
    """What is reported of a supervised service."""
    return ServiceHealth(name, life.phase.value, life.failures, life.restarts, life.last_exit[:MAX_TEXT])


def newest(folder: Path) -> HealthReport | None:
    """The report that the agent made last; None where it made none. Raises `Fault(FILE_UNREADABLE | MESSAGE_…)`."""
    file = folder / NEWEST
    return HealthReport.parse(read_bounded(file, MAX_REPORT_BYTES)) if file.exists() else None
