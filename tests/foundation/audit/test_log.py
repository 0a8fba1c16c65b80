"""The audit log as its users see it: append, reopen, verify, export; what was tampered with is found."""

from __future__ import annotations

import asyncio
import json
import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from foundation.audit.export import export, verify_export
from foundation.audit.key import read_audit_key
from foundation.audit.log import MerkleAuditLog
from foundation.audit.records import TreeHead, canonical
from foundation.audit.segments import HEAD_FILE, segment_paths
from foundation.audit.settings import AuditSettings
from foundation.audit.verify import Report, verify
from foundation.faults import Fault
from foundation.ports import AuditEvent
from foundation.reasons import Reason
from tests.fakes.clock import ManualClock

CLOCK = ManualClock()


def event(n: int) -> AuditEvent:
    return AuditEvent("node.enrolled", "system", f"node-{n}", detail={"serial": f"{n:x}"})


@pytest.fixture
def settings(tmp_path: Path) -> AuditSettings:
    made = AuditSettings(directory=tmp_path / "audit", segment_bytes=4096)
    MerkleAuditLog.create(made, CLOCK)
    return made


async def write(settings: AuditSettings, count: int, start: int = 0) -> None:
    log = await MerkleAuditLog.open(settings, CLOCK)
    for n in range(start, start + count):
        assert await log.append(event(n)) == n
    await log.close()


def check(settings: AuditSettings, since: TreeHead | None = None) -> Report:
    return verify(settings.directory, read_audit_key(settings.key_path).public_key(), since)


def head_of(settings: AuditSettings) -> TreeHead:
    return TreeHead.parse((settings.directory / HEAD_FILE).read_bytes().strip())


async def test_append_reopen_and_verify_over_segments(settings: AuditSettings) -> None:
    await write(settings, 30)
    await write(settings, 30, start=30)
    report = check(settings)
    assert (report.ok, report.size, report.torn_bytes) == (True, 60, 0)
    assert len(segment_paths(settings.directory)) > 3
    assert {stat.S_IMODE(path.stat().st_mode) for path in settings.directory.glob("*.log")} == {0o600}
    assert stat.S_IMODE(settings.key_path.stat().st_mode) == 0o600


async def test_appends_that_wait_together_share_commits(
    settings: AuditSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = await MerkleAuditLog.open(replace(settings, segment_bytes=1 << 20), CLOCK)
    syncs: list[int] = []
    sync = os.fsync
    monkeypatch.setattr("foundation.audit.writer.os.fsync", lambda fd: (syncs.append(fd), sync(fd))[1])
    indices = await asyncio.gather(*(log.append(event(n)) for n in range(500)))
    assert indices == list(range(500))
    assert len(syncs) <= 3
    await log.close()
    assert check(settings).size == 500


async def test_a_cancelled_append_disturbs_no_other(settings: AuditSettings) -> None:
    log = await MerkleAuditLog.open(settings, CLOCK)
    first = asyncio.create_task(log.append(event(0)))
    second = asyncio.create_task(log.append(event(1)))
    await asyncio.sleep(0)
    first.cancel()
    assert await second == 1
    await log.close()
    assert check(settings).size == 2


async def test_close_commits_what_waits_and_refuses_more(settings: AuditSettings) -> None:
    log = await MerkleAuditLog.open(settings, CLOCK)
    waiting = asyncio.create_task(log.append(event(0)))
    await asyncio.sleep(0)
    await log.close()
    await log.close()
    assert await waiting == 0
    with pytest.raises(Fault) as caught:
        await log.append(event(1))
    assert caught.value.reason is Reason.AUDIT_FAILED


async def test_a_second_writer_is_refused(settings: AuditSettings) -> None:
    log = await MerkleAuditLog.open(settings, CLOCK)
    with pytest.raises(Fault) as caught:
        await MerkleAuditLog.open(settings, CLOCK)
    assert caught.value.reason is Reason.IN_USE
    await log.close()


async def test_a_full_disk_fails_the_append_and_leaves_nothing(
    settings: AuditSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = await MerkleAuditLog.open(settings, CLOCK)
    await log.append(event(0))
    write_some = os.write
    short = iter([50])

    def full(descriptor: int, data: bytes) -> int:
        for count in short:
            return write_some(descriptor, data[:count])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("foundation.audit.writer.os.write", full)
        with pytest.raises(Fault) as caught:
            await log.append(event(1))
    assert (caught.value.reason, caught.value.detail) == (Reason.AUDIT_FAILED, "No space left on device")
    assert await log.append(event(2)) == 1
    await log.close()
    assert (check(settings).size, check(settings).problem) == (2, "")


async def test_after_a_failed_fsync_nothing_is_acknowledged(
    settings: AuditSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = await MerkleAuditLog.open(settings, CLOCK)

    def fail(_descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("foundation.audit.writer.os.fsync", fail)
        with pytest.raises(Fault):
            await log.append(event(0))
    with pytest.raises(Fault, match="open the log again"):
        await log.append(event(1))
    await log.close()


@pytest.mark.parametrize(
    ("broken", "field"),
    [
        (AuditEvent("k", "a", "s", detail={"x": float("nan")}), ""),
        (AuditEvent("k", "a", "s", detail={"x": object()}), ""),
        (AuditEvent("k", "a" * 513, "s"), "actor"),
    ],
)
async def test_what_cannot_be_recorded_is_refused(settings: AuditSettings, broken: AuditEvent, field: str) -> None:
    log = await MerkleAuditLog.open(settings, CLOCK)
    with pytest.raises(Fault) as caught:
        await log.append(broken)
    assert (caught.value.reason, caught.value.field) == (Reason.AUDIT_FAILED, field)
    await log.close()


async def test_an_oversized_detail_is_kept_as_its_digest(settings: AuditSettings) -> None:
    log = await MerkleAuditLog.open(settings, CLOCK)
    await log.append(AuditEvent("k", "a", "s", detail={"x": "é" * 20_000}))
    await log.close()
    public = read_audit_key(settings.key_path).public_key()
    record = json.loads(list(export(settings.directory, public))[1])["record"]
    assert set(record["event"]["detail"]) == {"omitted_bytes", "omitted_sha256"}


async def test_the_longest_event_fits_a_line(settings: AuditSettings) -> None:
    log = await MerkleAuditLog.open(settings, CLOCK)
    name = "\U0001f511" * 512
    await log.append(AuditEvent(name, name, name, name, {"x": "y" * 16_000}, name))
    await log.close()
    assert check(settings).ok


def test_a_log_is_not_made_twice(settings: AuditSettings) -> None:
    with pytest.raises(Fault) as caught:
        MerkleAuditLog.create(settings, CLOCK)
    assert caught.value.reason is Reason.CONFLICT


async def test_a_vanished_log_is_neither_opened_nor_made_anew(settings: AuditSettings) -> None:
    await write(settings, 3)
    for path in segment_paths(settings.directory):
        path.unlink()
    with pytest.raises(Fault) as caught:
        await MerkleAuditLog.open(settings, CLOCK)
    assert caught.value.reason is Reason.AUDIT_TAMPERED
    with pytest.raises(Fault) as caught:
        MerkleAuditLog.create(settings, CLOCK)
    assert caught.value.reason is Reason.AUDIT_TAMPERED


# --- tampering ----------------------------------------------------------------------------------


async def test_every_flipped_byte_is_found(settings: AuditSettings) -> None:
    """Each byte of a closed log, one at a time, in one of its bits."""
    await write(settings, 4)
    files = [*segment_paths(settings.directory), settings.directory / HEAD_FILE]
    for path in files:
        good = path.read_bytes()
        for offset in range(len(good)):
            bad = bytearray(good)
            bad[offset] ^= 1 << (offset % 8)
            path.write_bytes(bad)
            assert not check(settings).ok, (path.name, offset)
        path.write_bytes(good)
    assert check(settings).ok


async def test_removed_reordered_repeated_and_forged_records_are_found(settings: AuditSettings) -> None:
    await write(settings, 8)
    path = segment_paths(settings.directory)[0]
    good = path.read_bytes()
    lines = good.splitlines(keepends=True)
    pairs = [lines[i : i + 2] for i in range(1, len(lines), 2)]  # one record and its head each
    forged = lines[1].replace(b"node-0", b"node-9")
    variants = [
        [*pairs[0], *pairs[2]],
        [*pairs[1], *pairs[0]],
        [*pairs[0], *pairs[0], *pairs[1]],
        [forged, lines[2], *pairs[1]],
        [lines[1], lines[3], lines[4]],
        [lines[1], lines[1], lines[2]],
    ]
    for variant in variants:
        path.write_bytes(b"".join([lines[0], *variant]))
        assert not check(settings).ok
        with pytest.raises(Fault) as caught:
            await MerkleAuditLog.open(settings, CLOCK)
        assert caught.value.reason is Reason.AUDIT_TAMPERED
    path.write_bytes(good)
    assert check(settings).ok


async def test_truncation_below_the_head_is_found_at_every_byte(settings: AuditSettings) -> None:
    await write(settings, 3)
    path = segment_paths(settings.directory)[-1]
    good = path.read_bytes()
    for cut in range(len(good)):
        path.write_bytes(good[:cut])
        assert not check(settings).ok
        with pytest.raises(Fault) as caught:
            await MerkleAuditLog.open(settings, CLOCK)
        assert caught.value.reason is Reason.AUDIT_TAMPERED


async def test_a_missing_segment_is_found(settings: AuditSettings) -> None:
    await write(settings, 40)
    for path in segment_paths(settings.directory):
        good = path.read_bytes()
        path.unlink()
        assert not check(settings).ok
        path.write_bytes(good)


async def test_rolling_back_log_and_head_together_is_seen_against_an_exported_head(settings: AuditSettings) -> None:
    await write(settings, 5)
    before = {path: path.read_bytes() for path in settings.directory.iterdir()}
    await write(settings, 5, start=5)
    exported = head_of(settings)
    for path in settings.directory.iterdir():
        if path in before:
            path.write_bytes(before[path])
    assert check(settings).ok  # nothing in the folder can tell
    report = check(settings, exported)
    assert "5 records that the exported head covers are gone" in report.problem


async def test_a_log_rewritten_with_its_own_key_is_seen_against_an_exported_head(settings: AuditSettings) -> None:
    await write(settings, 5)
    exported = head_of(settings)
    for path in settings.directory.glob("*.log"):
        path.unlink()
    (settings.directory / HEAD_FILE).unlink()
    MerkleAuditLog.create(settings, CLOCK)
    log = await MerkleAuditLog.open(settings, CLOCK)
    for n in range(10, 20):
        await log.append(event(n))
    await log.close()
    assert check(settings).ok
    assert "the first 5 records are not those of the exported head" in check(settings, exported).problem


async def test_another_key_does_not_verify(settings: AuditSettings) -> None:
    await write(settings, 2)
    other = Ed25519PrivateKey.generate().public_key()
    assert not verify(settings.directory, other).ok
    own = read_audit_key(settings.key_path).public_key()
    foreign = replace(head_of(settings), signature=bytes(64))
    assert "not signed" in verify(settings.directory, own, foreign).problem


async def test_an_extension_of_an_exported_head_verifies(settings: AuditSettings) -> None:
    heads = [head_of(settings)]
    for n in range(12):
        await write(settings, 1, start=n)
        heads.append(head_of(settings))
    assert all(check(settings, head).ok for head in heads)


# --- export -------------------------------------------------------------------------------------


async def test_an_export_verifies_alone(settings: AuditSettings) -> None:
    await write(settings, 9)
    since = head_of(settings)
    await write(settings, 20, start=9)
    key = read_audit_key(settings.key_path).public_key()
    for first in (0, 7, 28, 29):
        lines = list(export(settings.directory, key, first=first, since=since))
        assert verify_export(lines, key, since) == Report(29, head_of(settings))
    assert not verify_export(list(export(settings.directory, key)), key, since).ok  # it proves no extension


async def test_a_changed_export_does_not_verify(settings: AuditSettings) -> None:
    await write(settings, 6)
    key = read_audit_key(settings.key_path).public_key()
    lines = list(export(settings.directory, key))
    changed = json.loads(lines[2])
    changed["record"]["event"]["actor"] = "somebody else"
    variants = [
        [],
        lines[:-1],
        [lines[0], *lines[2:]],
        [*lines, lines[-1]],
        [lines[0], lines[2], lines[1], *lines[3:]],
        [*lines[:2], canonical(changed) + b"\n", *lines[3:]],
        [lines[0].replace(b'"first":0', b'"first":1'), *lines[1:]],
        [b"not json\n", *lines[1:]],
        [lines[0], b"x" * 200_000],
    ]
    assert [verify_export(variant, key).ok for variant in variants] == [False] * len(variants)
