"""Emulated TPMs for tests. One implementation serves tests and demonstration.

from tests.support.swtpm import maker, swtpm  # noqa: F401  # fixtures
def test_x(swtpm): ...                        # a booted P-256 device; its maker is the fixture `maker`
with booted(folder, maker, "EK-RSA2048") as device: ...
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.demo.emulated_tpm import (
    CERTIFICATE_INDEX,
    CHAIN_INDEX,
    EmulatedTpm,
    erase_nv,
    manufacture,
    set_up_by_swtpm,
    write_nv,
)
from deploy.demo.measured_boot import Measurement, event_log, healthy_boot
from deploy.demo.tpm_maker import TpmMaker

__all__ = [
    "CERTIFICATE_INDEX",
    "CHAIN_INDEX",
    "EmulatedTpm",
    "Measurement",
    "SwtpmDevice",
    "booted",
    "erase_nv",
    "event_log",
    "healthy_boot",
    "maker",
    "manufacture",
    "set_up_by_swtpm",
    "swtpm",
    "write_nv",
]

SwtpmDevice = EmulatedTpm


@contextlib.contextmanager
def booted(folder: Path, maker: TpmMaker, ek: str = "EK-ECC256") -> Iterator[EmulatedTpm]:
    """A freshly manufactured device, booted healthily, powered off at the end. `ek` is `EK-ECC256`, `EK-RSA2048` or
    `EK-HIGH-ECC384`."""
    with manufacture(folder, maker, ek) as device:
        yield device


@pytest.fixture(scope="session", name="maker")
def maker() -> TpmMaker:
    """The maker of this session's devices."""
    return TpmMaker.create()


@pytest.fixture(name="swtpm")
def swtpm(tmp_path: Path, maker: TpmMaker) -> Iterator[EmulatedTpm]:
    """A booted device with a P-256 EK."""
    with booted(tmp_path / "tpm", maker) as device:
        yield device
