"""Attack: a node's disk is copied, or the node is booted into a system of the attacker's, to read what it decides by.

Row "stolen node" of the attack table: what a node keeps for when it is cut off (its policy, its own record) is sealed
to its TPM's boot state.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from agent.bundle import BundleSettings
from agent.sealed_file import TpmLock
from agent.tpm import Tpm
from tests.fakes.clock import ManualClock
from tests.support.bundles import NODE, FakeAuthority, Keeping
from tests.support.swtpm import EmulatedTpm, TpmMaker, booted, maker, swtpm

__all__ = ["maker", "swtpm"]  # fixtures

SECRETS = (b"postgres", b"/models", NODE.name.encode(), b"expires")


async def number_of(node: Keeping, device: EmulatedTpm, *, fetch: bool = False) -> int:
    """The revision that `node` has with this TPM, 0 for none."""
    with Tpm(device.tcti) as tpm:
        node.lock = TpmLock(tpm, BundleSettings().selection)
        bundles = node.start()
        await bundles.load()
        if fetch:
            await bundles.refresh()
        return bundles.current.number if bundles.current else 0


@pytest.fixture
async def node(tmp_path: Path, swtpm: EmulatedTpm) -> Keeping:
    clock = ManualClock()
    node = Keeping(tmp_path / "node", FakeAuthority(clock), clock)
    assert await number_of(node, swtpm, fetch=True) == 1
    return node


async def test_its_own_machine_reads_it(node: Keeping, swtpm: EmulatedTpm) -> None:
    assert await number_of(node, swtpm) == 1


async def test_a_copied_disk_is_of_no_use(node: Keeping, maker: TpmMaker, tmp_path: Path) -> None:
    copied = Keeping(tmp_path / "copied", node.authority, node.clock)
    shutil.copytree(node.folder, copied.folder)
    assert not [path for path in copied.folder.iterdir() if any(each in path.read_bytes() for each in SECRETS)]
    with booted(tmp_path / "thief", maker) as thief:
        assert await number_of(copied, thief) == 0


async def test_another_system_on_the_same_machine_reads_nothing(node: Keeping, swtpm: EmulatedTpm) -> None:
    swtpm.shut_down()
    swtpm.boot(())
    assert await number_of(node, swtpm) == 0
