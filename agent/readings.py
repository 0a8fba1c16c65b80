"""What this machine tells of itself: read where the kernel writes it, bounded, and missing where it cannot be read.

`root` stands before every path, so that tests read recorded trees. Blocks: call off the event loop.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path

from foundation.wire.health import MAX_DISKS, MAX_NAME, MAX_TEMPERATURES, MAX_TEXT, Disk, Load, Memory, Temperature

ROOT = Path("/")
_MAX_BYTES = 64 * 1024
_MAX_SENSORS = 256  # that are looked at


def read_text(path: Path) -> str:
    """The beginning of a file that the kernel or the system writes; empty where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(_MAX_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""


def read_versions(root: Path = ROOT) -> dict[str, str]:
    """Of the agent, the kernel and the system."""
    found = {
        "agent": _installed("sallyport"),
        "kernel": os.uname().release,
        "os": parse_assignments(read_text(root / "etc/os-release")).get("PRETTY_NAME", ""),
    }
    return {name: text[:MAX_TEXT] for name, text in found.items() if text}


def read_boot_id(root: Path = ROOT) -> str:
    """Which start of the kernel this is: a random UUID (proc(5))."""
    return read_text(root / "proc/sys/kernel/random/boot_id").strip()[:64]


def read_uptime(root: Path = ROOT) -> float | None:
    """Seconds since the kernel's start."""
    return parse_number(read_text(root / "proc/uptime").partition(" ")[0])


def read_disks(paths: Iterable[Path]) -> tuple[Disk, ...]:
    """The file systems of these paths."""
    found = []
    for path in list(paths)[:MAX_DISKS]:
        try:
            status = os.statvfs(path)
        except OSError:
            continue
        found.append(Disk(str(path)[:MAX_NAME], status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize))
    return tuple(found)


def read_memory(root: Path = ROOT) -> Memory | None:
    """Of the machine and of this process."""
    sizes = parse_meminfo(read_text(root / "proc/meminfo"))
    pages = read_text(root / "proc/self/statm").split()  # size, resident, … in pages (proc(5))
    resident = parse_number(pages[1]) if len(pages) > 1 else None
    if "MemTotal" not in sizes or "MemAvailable" not in sizes or resident is None:
        return None
    return Memory(sizes["MemTotal"], sizes["MemAvailable"], int(resident) * os.sysconf("SC_PAGE_SIZE"))


def read_load(root: Path = ROOT) -> Load | None:
    numbers = [parse_number(word) for word in read_text(root / "proc/loadavg").split()[:3]]
    known = [number for number in numbers if number is not None]
    return Load(*known) if len(known) == 3 else None


def read_temperatures(root: Path = ROOT) -> tuple[Temperature, ...]:
    """Thermal zones and hardware monitors, in degrees Celsius; none where the machine has no such sensor."""
    found: dict[str, float] = {}
    for name, file in _sensors(root):
        thousandths = parse_number(read_text(file).strip())
        if thousandths is not None and -273_150 <= thousandths <= 1_000_000:
            found.setdefault(name[:MAX_NAME], thousandths / 1000)
    return tuple(Temperature(name, celsius) for name, celsius in sorted(found.items())[:MAX_TEMPERATURES])


def parse_meminfo(text: str) -> dict[str, int]:
    """Bytes by name, of /proc/meminfo (proc(5))."""
    found = {}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        number, _, unit = rest.strip().partition(" ")
        if number.isascii() and number.isdecimal() and len(number) <= 15:
            found[name] = int(number) * (1024 if unit == "kB" else 1)
    return found


def parse_assignments(text: str) -> Mapping[str, str]:
    """`NAME=value` lines, a value perhaps in quotes, of os-release(5)."""
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line and not line.startswith("#"))
    return {name: value.strip().strip("\"'") for name, _, value in pairs}


def parse_number(text: str) -> float | None:
    """A number as the kernel writes it; None for anything else."""
    digits = text.removeprefix("-").replace(".", "", 1)
    return float(text) if digits.isascii() and digits.isdecimal() and len(text) <= 24 else None


def _sensors(root: Path) -> Iterator[tuple[str, Path]]:
    """Name and file of each sensor (the kernel's Documentation/ABI: sysfs-class-thermal, sysfs-class-hwmon)."""
    zones = _listed(root / "sys/class/thermal", "thermal_zone*")
    yield from ((read_text(zone / "type").strip() or zone.name, zone / "temp") for zone in zones)
    for chip in _listed(root / "sys/class/hwmon", "hwmon*"):
        maker = read_text(chip / "name").strip() or chip.name
        for file in _listed(chip, "temp*_input"):
            label = read_text(file.with_name(file.name.replace("_input", "_label"))).strip()
            yield f"{maker}/{label or file.name.removesuffix('_input')}", file


def _listed(folder: Path, pattern: str) -> list[Path]:
    try:
        return sorted(folder.glob(pattern))[:_MAX_SENSORS]
    except OSError:
        return []


def _installed(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""
