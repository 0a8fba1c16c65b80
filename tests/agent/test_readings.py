"""What the machine tells: from recorded trees, from this machine, and from anything at all."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import readings
from foundation.wire.health import Load, Memory, Temperature

TREE = {
    "etc/os-release": 'NAME="Debian"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n# X=y\n',
    "proc/sys/kernel/random/boot_id": "7b7a1f6e-0000-4000-8000-000000000001\n",
    "proc/uptime": "1234.56 4321.00\n",
    "proc/meminfo": "MemTotal:        2048 kB\nMemFree:  1 kB\nMemAvailable:    1024 kB\nHugePages_Total:   3\n",
    "proc/self/statm": "1000 10 5 1 0 20 0\n",
    "proc/loadavg": "0.10 0.20 0.30 1/234 5678\n",
    "sys/class/thermal/thermal_zone0/type": "x86_pkg_temp\n",
    "sys/class/thermal/thermal_zone0/temp": "45000\n",
    "sys/class/thermal/thermal_zone1/type": "broken\n",
    "sys/class/thermal/thermal_zone1/temp": "no number\n",
    "sys/class/hwmon/hwmon0/name": "nvme\n",
    "sys/class/hwmon/hwmon0/temp1_label": "Composite\n",
    "sys/class/hwmon/hwmon0/temp1_input": "-1500\n",
    "sys/class/hwmon/hwmon0/temp2_input": "38850\n",
    "sys/class/hwmon/hwmon0/fan1_input": "1200\n",
}


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    for name, text in TREE.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path


def test_a_recorded_machine_is_read(recorded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sysconf", lambda _name: 4096)
    assert readings.read_versions(recorded)["os"] == "Debian GNU/Linux 12 (bookworm)"
    assert readings.read_boot_id(recorded) == "7b7a1f6e-0000-4000-8000-000000000001"
    assert readings.read_uptime(recorded) == 1234.56
    assert readings.read_memory(recorded) == Memory(2048 * 1024, 1024 * 1024, 40960)
    assert readings.read_load(recorded) == Load(0.1, 0.2, 0.3)
    assert readings.read_temperatures(recorded) == (
        Temperature("nvme/Composite", -1.5),
        Temperature("nvme/temp2", 38.85),
        Temperature("x86_pkg_temp", 45.0),
    )


def test_what_is_not_there_is_missing(tmp_path: Path) -> None:
    assert "os" not in readings.read_versions(tmp_path)
    assert readings.read_boot_id(tmp_path) == ""
    assert readings.read_uptime(tmp_path) is None
    assert readings.read_memory(tmp_path) is None
    assert readings.read_load(tmp_path) is None
    assert readings.read_temperatures(tmp_path) == ()
    assert readings.read_disks([tmp_path / "nowhere"]) == ()


def test_this_machine_is_read(tmp_path: Path) -> None:
    memory, (disk,) = readings.read_memory(), readings.read_disks([tmp_path])
    assert memory
    assert 0 < memory.agent < memory.total
    assert 0 <= disk.free <= disk.total
    assert readings.read_uptime()
    assert readings.read_versions()["kernel"]


def test_a_file_without_an_end_is_read_to_its_bound() -> None:
    assert len(readings.read_text(Path("/dev/zero"))) == 64 * 1024


@given(st.text(max_size=200))
def test_whatever_a_file_holds_nothing_fails(text: str) -> None:
    readings.parse_meminfo(text)
    readings.parse_assignments(text)
    readings.parse_number(text)


@given(st.floats(-1e9, 1e9).map(lambda each: f"{each:.3f}"))
def test_numbers_are_read_as_they_stand(text: str) -> None:
    assert readings.parse_number(text) == float(text)
