"""A node's report of its own health: what the agent sends and the authority keeps.

Laws held here:
- a report is what a node *says*: it is shown and counted, and widens trust nowhere. It has no field for a role, a
  segment, a site or a posture, and what it says of versions is no inventory entry;
- every text, list and number is bounded, and a field that is not known is refused;
- a fact that could not be read is missing, never made up.

Times are seconds since the Unix epoch, durations seconds, sizes bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, TypeVar

from foundation.faults import Fault
from foundation.fields import Fields
from foundation.reasons import Reason

MAX_REPORT_BYTES = 16 * 1024
MAX_DISKS, MAX_TEMPERATURES, MAX_SERVICES, MAX_VERSIONS = 16, 32, 32, 40
MAX_NAME, MAX_TEXT = 128, 128
SHORTEST_INTERVAL, LONGEST_INTERVAL = 1.0, 86_400.0
SILENT_AFTER = 3
"""Intervals without a report, after which a node is silent."""
_MAX_SIZE, _MAX_COUNT, _LONGEST, _LATEST = 2**60, 2**40, 1e10, 1e11

T = TypeVar("T")


class Firewall(StrEnum):
    """How the agent's table in the kernel stands."""

    IN_FORCE = "in_force"
    DRIFTED = "drifted"
    OFF = "off"


class Ailment(StrEnum):
    """What is wrong with a node, by its own report: a closed vocabulary."""

    DISK_FULL = "disk_full"
    MEMORY_SHORT = "memory_short"
    HOT = "hot"
    CLOCK_OFF = "clock_off"
    CERTIFICATE_ENDING = "certificate_ending"
    ATTESTATION_OVER = "attestation_over"
    TUNNELS_MISSING = "tunnels_missing"
    FIREWALL_DRIFTED = "firewall_drifted"
    SERVICE_FAILING = "service_failing"
    OUTBOX_FILLING = "outbox_filling"


class Standing(StrEnum):
    """How a node stands, as the authority shows and counts it. `SILENT` is overdue by more than two reports; of an
    `UNKNOWN` one none was heard."""

    WELL = "well"
    AILING = "ailing"
    SILENT = "silent"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Disk:
    """The file system that holds `path`; `free` is what an ordinary user may fill."""

    path: str
    total: int
    free: int

    @classmethod
    def parse(cls, fields: Fields) -> Disk:
        disk = cls(fields.text("path", max_length=MAX_NAME), _size(fields, "total"), _size(fields, "free"))
        fields.finish()
        return disk


@dataclass(frozen=True, slots=True)
class Memory:
    """Of the machine, and of it what the agent itself holds (resident)."""

    total: int
    available: int
    agent: int

    @classmethod
    def parse(cls, fields: Fields) -> Memory:
        memory = cls(*(_size(fields, name) for name in ("total", "available", "agent")))
        fields.finish()
        return memory


@dataclass(frozen=True, slots=True)
class Load:
    """Processes that run or wait to, on average of the last 1, 5 and 15 minutes (getloadavg(3))."""

    one: float
    five: float
    fifteen: float

    @classmethod
    def parse(cls, fields: Fields) -> Load:
        load = cls(*(fields.number(name, most=_MAX_COUNT) for name in ("one", "five", "fifteen")))
        fields.finish()
        return load


@dataclass(frozen=True, slots=True)
class Temperature:
    """What one sensor measures."""

    sensor: str
    celsius: float

    @classmethod
    def parse(cls, fields: Fields) -> Temperature:
        found = cls(fields.text("sensor", max_length=MAX_NAME), fields.number("celsius", least=-273.15, most=1000))
        fields.finish()
        return found


@dataclass(frozen=True, slots=True)
class ServiceHealth:
    """A supervised service. `failures` are those in a row; `last_exit` tells how it ended last."""

    name: str
    phase: str
    failures: int
    restarts: int
    last_exit: str = ""

    @classmethod
    def parse(cls, fields: Fields) -> ServiceHealth:
        found = cls(
            name=fields.text("name", max_length=MAX_NAME),
            phase=fields.text("phase", max_length=16),
            failures=fields.integer("failures", most=_MAX_COUNT),
            restarts=fields.integer("restarts", most=_MAX_COUNT),
            last_exit=fields.text("last_exit", "", max_length=MAX_TEXT),
        )
        fields.finish()
        return found


@dataclass(frozen=True, slots=True)
class Tunnels:
    """To how many gateways the node is connected, of how many that it should be."""

    connected: int
    wanted: int

    @classmethod
    def parse(cls, fields: Fields) -> Tunnels:
        tunnels = cls(fields.integer("connected", most=64), fields.integer("wanted", most=64))
        fields.finish()
        return tunnels


@dataclass(frozen=True, slots=True)
class Outbox:
    """What waits on the node's disk to be delivered, and how much may."""

    records: int
    used: int
    bound: int

    @classmethod
    def parse(cls, fields: Fields) -> Outbox:
        outbox = cls(
            fields.integer("records", most=_MAX_COUNT), fields.integer("used", most=_MAX_SIZE), _size(fields, "bound")
        )
        fields.finish()
        return outbox


@dataclass(frozen=True, slots=True)
class Bundle:
    """The signed revision that the node holds, and for how long it has not heard that it is still the newest."""

    revision: int
    age: float

    @classmethod
    def parse(cls, fields: Fields) -> Bundle:
        bundle = cls(fields.integer("revision"), fields.number("age", most=_LONGEST))
        fields.finish()
        return bundle


@dataclass(frozen=True, slots=True)
class HealthReport:
    """What a node says of itself. `at` is its own clock; `interval` is within what time it reports again; `clock_skew`
    is how far its clock is ahead of the authority's. What is None or empty was not to be read."""

    at: float
    interval: float
    versions: Mapping[str, str] = field(default_factory=dict)
    boot_id: str = ""
    uptime: float | None = None
    disks: tuple[Disk, ...] = ()
    memory: Memory | None = None
    load: Load | None = None
    temperatures: tuple[Temperature, ...] = ()
    clock_skew: float | None = None
    certificate_until: float | None = None
    attested_until: float | None = None
    tunnels: Tunnels | None = None
    firewall: Firewall | None = None
    services: tuple[ServiceHealth, ...] = ()
    outbox: Outbox | None = None
    bundle: Bundle | None = None

    def document(self) -> dict[str, Any]:
        """It as JSON values, without what was not to be read."""
        return {name: value for name, value in asdict(self).items() if value not in (None, "", (), [], {})}

    def encode(self) -> bytes:
        return json.dumps(self.document(), separators=(",", ":"), allow_nan=False).encode()

    @classmethod
    def parse(cls, raw: bytes) -> HealthReport:
        """Raises `Fault(MESSAGE_MALFORMED | MESSAGE_TOO_LARGE)` naming the field."""
        fields = Fields.from_json(raw, "report", Reason.MESSAGE_MALFORMED, max_bytes=MAX_REPORT_BYTES)
        report = cls(
            at=fields.number("at", most=_LATEST),
            interval=fields.number("interval", least=SHORTEST_INTERVAL, most=LONGEST_INTERVAL),
            versions=_versions(fields),
            boot_id=fields.text("boot_id", "", max_length=64),
            uptime=_number(fields, "uptime"),
            disks=fields.each("disks", Disk.parse, most=MAX_DISKS, optional=True),
            memory=_optional(fields, "memory", Memory.parse),
            load=_optional(fields, "load", Load.parse),
            temperatures=fields.each("temperatures", Temperature.parse, most=MAX_TEMPERATURES, optional=True),
            clock_skew=_number(fields, "clock_skew", least=-_LATEST),
            certificate_until=_number(fields, "certificate_until", most=_LATEST),
            attested_until=_number(fields, "attested_until", most=_LATEST),
            tunnels=_optional(fields, "tunnels", Tunnels.parse),
            firewall=Firewall(fields.one_of("firewall", tuple(Firewall))) if fields.has("firewall") else None,
            services=fields.each("services", ServiceHealth.parse, most=MAX_SERVICES, optional=True),
            outbox=_optional(fields, "outbox", Outbox.parse),
            bundle=_optional(fields, "bundle", Bundle.parse),
        )
        fields.finish()
        return report


FREE_SHARE, AVAILABLE_SHARE, OUTBOX_SHARE = 0.05, 0.05, 0.8
HOT_CELSIUS, SKEW_SECONDS, ENDING_SECONDS, FAILING_TIMES = 95.0, 5.0, 300.0, 3


def ailments(report: HealthReport) -> tuple[Ailment, ...]:
    """What is wrong, judged by the report alone: a fact that is missing is not wrong."""
    wrong = {
        Ailment.DISK_FULL: any(disk.free < FREE_SHARE * disk.total for disk in report.disks),
        Ailment.MEMORY_SHORT: report.memory is not None
        and report.memory.available < AVAILABLE_SHARE * report.memory.total,
        Ailment.HOT: any(each.celsius >= HOT_CELSIUS for each in report.temperatures),
        Ailment.CLOCK_OFF: report.clock_skew is not None and abs(report.clock_skew) > SKEW_SECONDS,
        Ailment.CERTIFICATE_ENDING: _remaining(report, report.certificate_until) < ENDING_SECONDS,
        Ailment.ATTESTATION_OVER: _remaining(report, report.attested_until) <= 0,
        Ailment.TUNNELS_MISSING: report.tunnels is not None and report.tunnels.connected < report.tunnels.wanted,
        Ailment.FIREWALL_DRIFTED: report.firewall is Firewall.DRIFTED,
        Ailment.SERVICE_FAILING: any(service.failures >= FAILING_TIMES for service in report.services),
        Ailment.OUTBOX_FILLING: report.outbox is not None and report.outbox.used > OUTBOX_SHARE * report.outbox.bound,
    }
    return tuple(ailment for ailment, is_so in wrong.items() if is_so)


def standing(*, ails: bool, due: float, now: float) -> Standing:
    """How a node stands whose newest report told that it `ails` and has to be followed by another until `due`."""
    if now > due:
        return Standing.SILENT
    return Standing.AILING if ails else Standing.WELL


def _remaining(report: HealthReport, until: float | None) -> float:
    return float("inf") if until is None else until - report.at


def _size(fields: Fields, name: str) -> int:
    return fields.integer(name, most=_MAX_SIZE)


def _number(fields: Fields, name: str, *, least: float = 0.0, most: float = _LONGEST) -> float | None:
    return fields.number(name, least=least, most=most) if fields.has(name) else None


def _optional(fields: Fields, name: str, parse: Callable[[Fields], T]) -> T | None:
    return parse(fields.section(name)) if fields.has(name) else None


def _versions(fields: Fields) -> Mapping[str, str]:
    versions = fields.mapping("versions", {}, most=MAX_VERSIONS)
    if any(len(name) > MAX_NAME or len(text) > MAX_TEXT for name, text in versions.items()):
        raise Fault(Reason.MESSAGE_MALFORMED, f"at most {MAX_TEXT} characters each", field=f"{fields.path}.versions")
    return versions
