"""A crash at any moment: what was acknowledged is there, what was torn is cut off and said so, and nothing else passes
for a crash."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foundation.audit.export import export
from foundation.audit.key import read_audit_key
from foundation.audit.log import MerkleAuditLog
from foundation.audit.segments import HEAD_FILE, segment_paths
from foundation.audit.settings import AuditSettings
from foundation.audit.verify import verify
from foundation.faults import Fault
from foundation.ports import AuditEvent
from foundation.reasons import Reason
from tests.fakes.clock import ManualClock

KILLS = 24
SEED = 20261123


def killed_after(directory: Path, acknowledgements: int) -> int:
    """How many records a writer acknowledged that was killed (-9) while it went on after so many."""
    command = [sys.executable, "-m", "tests.support.audit_victim", str(directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as victim:
        assert victim.stdout is not None
        for _ in range(acknowledgements):
            victim.stdout.readline()
        victim.kill()
        told = victim.stdout.read().split(b"\n")[:-1]
    return acknowledgements + len(told)


async def test_kill_9_again_and_again(tmp_path: Path) -> None:
    chance = random.Random(SEED)  # moments to kill at, repeatable
    where = AuditSettings(directory=tmp_path / "audit")
    clock = ManualClock()
    MerkleAuditLog.create(where, clock)
    public = read_audit_key(where.key_path).public_key()
    acknowledged = 0
    since = None
    for _ in range(KILLS):
        acknowledged += killed_after(where.directory, chance.randrange(1, 60))
        report = verify(where.directory, public, since)
        assert report.ok, report.problem
        assert report.size >= acknowledged
        log = await MerkleAuditLog.open(where, clock)
        assert log.head.size >= acknowledged
        await log.close()
        since = log.head
        acknowledged = since.size
    assert verify(where.directory, public, since).torn_bytes == 0


@pytest.fixture(scope="module")
def crashed(tmp_path_factory: pytest.TempPathFactory) -> tuple[AuditSettings, list[int]]:
    """A log whose head file is as old as the log, and the offsets at which its commits end."""
    where = AuditSettings(directory=tmp_path_factory.mktemp("crash") / "audit", head_every=1e9)
    clock = ManualClock()
    ends: list[int] = []

    async def write() -> None:
        MerkleAuditLog.create(where, clock)
        path = segment_paths(where.directory)[0]
        first_head = (where.directory / HEAD_FILE).read_bytes()
        ends.append(path.stat().st_size)
        log = await MerkleAuditLog.open(where, clock)
        for n in range(6):
            await asyncio.gather(*(log.append(AuditEvent("k", "a", f"{n}.{i}")) for i in range(n % 3 + 1)))
            ends.append(path.stat().st_size)
        await log.close()
        (where.directory / HEAD_FILE).write_bytes(first_head)

    asyncio.run(write())
    return where, ends


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
async def test_a_torn_tail_is_cut_off_and_recorded(
    crashed: tuple[AuditSettings, list[int]], tmp_path: Path, data: st.DataObject
) -> None:
    source, ends = crashed
    where = AuditSettings(directory=tmp_path / "audit")
    shutil.rmtree(where.directory, ignore_errors=True)
    shutil.copytree(source.directory, where.directory)
    path = segment_paths(where.directory)[0]
    cut = data.draw(st.integers(ends[0], ends[-1]))
    path.write_bytes(path.read_bytes()[:cut])
    public = read_audit_key(where.key_path).public_key()
    torn = cut - max(end for end in ends if end <= cut)
    before = verify(where.directory, public)
    assert (before.ok, before.torn_bytes) == (True, torn)
    await (await MerkleAuditLog.open(where, ManualClock())).close()
    after = verify(where.directory, public)
    assert (after.ok, after.size, after.torn_bytes) == (True, before.size + (torn > 0), 0)
    last = json.loads(list(export(where.directory, public))[-1])["record"]["event"] if torn else None
    assert last is None or (last["kind"], last["detail"]) == ("audit.recovered", {"torn_bytes": torn})


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
async def test_damage_before_the_last_commit_is_no_crash(
    crashed: tuple[AuditSettings, list[int]], tmp_path: Path, data: st.DataObject
) -> None:
    source, ends = crashed
    where = AuditSettings(directory=tmp_path / "audit")
    shutil.rmtree(where.directory, ignore_errors=True)
    shutil.copytree(source.directory, where.directory)
    path = segment_paths(where.directory)[0]
    bad = bytearray(path.read_bytes())
    begin = data.draw(st.integers(0, ends[-2] - 1))
    length = data.draw(st.integers(1, ends[-2] - begin))
    damage = data.draw(st.sampled_from(("drop", "zero")))
    bad[begin : begin + length] = b"" if damage == "drop" else bytes(length)
    path.write_bytes(bad)
    with pytest.raises(Fault) as caught:
        await MerkleAuditLog.open(where, ManualClock())
    assert caught.value.reason is Reason.AUDIT_TAMPERED
