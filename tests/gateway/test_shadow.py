"""A candidate is asked what the revision in force is asked, and nobody waits for it."""

from __future__ import annotations

import asyncio
import functools
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from foundation.faults import Fault
from foundation.identity import SnapshotNumbers
from foundation.reasons import Reason
from gateway.shadow.runner import ShadowRunner
from gateway.shadow.tap import ShadowTap, connect, listen
from policies.lifecycle.revision import build
from policies.model import FOREVER, Answer, Decision, FrozenInput, judge
from policies.settings import CompileSettings, PolicySettings
from policies.shadow import parse_sample
from tests.fakes.audit import MemoryAuditLog
from tests.support.policy import workspace
from tests.support.signing import new_signing_key
from tests.support.workspaces import query

KEY = new_signing_key()
GRANTS = "roles: {a: A}\ngrants:\n  - {id: g, role: a, route: r, methods: [GET], paths: [/%s], expires: 2030-01-01}\n"


@functools.cache
def bundle(path: str) -> bytes:
    """A revision that grants this path alone."""
    return build(workspace(grants=GRANTS % path), 7, 1_800_000_000, CompileSettings()).signed(KEY)


def decided(*, allow: bool = True, path: str = "x", now: int = 1_800_000_000) -> Decision:
    """A decision by policy on a GET of `/<path>` on route `r`."""
    answer = Answer(allow, (Reason.GRANTED if allow else Reason.PATH_NOT_GRANTED,), "g", 1_893_456_000.0)
    answer = Answer(answer.allow, answer.reasons, "g" if allow else "", answer.deadline, (), FrozenInput(b"k", b"{}"))
    asked = query("r", roles=("a",), path=(path,), now=now)
    return judge("d-1", asked, answer, FOREVER, SnapshotNumbers(1, 0, 0, 0))


# --- The tap --------------------------------------------------------------------------------------------------------


def test_without_anybody_who_listens_nothing_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.shadow.tap.sample_of", None)  # it would be called in vain
    tap = ShadowTap(tmp_path / "missing")
    for now in range(5):
        tap.offer(decided(now=now))


def test_samples_come_to_who_listens_wherever_the_folder_is(tmp_path: Path) -> None:
    folder = tmp_path / ("deep" * 30)  # more than the address of a Unix socket holds
    folder.mkdir()
    tap = ShadowTap(folder)
    tap.offer(decided(now=1))
    with listen(folder) as samples:
        tap.offer(decided(now=1))  # it looks once a second
        tap.offer(decided(now=2, path="y"))
        found = parse_sample(samples.recv(65536))
        assert (found.route, found.input["request"]["path"], found.seen, found.dropped) == ("r", ["y"], 1, 0)
    tap.close()


def test_what_finds_no_room_is_dropped_and_counted(tmp_path: Path) -> None:
    tap = ShadowTap(tmp_path, per_second=10_000)
    with listen(tmp_path) as samples:
        for _ in range(3000):  # more than the kernel queues; nothing here waits
            tap.offer(decided(now=1))
        taken = len(drained(samples))
        assert 0 < taken < 3000
        tap.offer(decided(now=1))
        found = parse_sample(samples.recv(65536))
        assert (found.dropped, found.seen) == (3000 - taken, 3001 - taken)
    tap.close()


def drained(samples: socket.socket) -> list[bytes]:
    """What waits in the socket."""
    samples.setblocking(False)
    found = []
    while True:
        try:
            found.append(samples.recv(65536))
        except BlockingIOError:
            return found


def test_samples_are_bounded_and_spread_over_a_second(tmp_path: Path) -> None:
    tap, taken = ShadowTap(tmp_path, per_second=10), list[int]()
    with listen(tmp_path) as samples:
        for now in range(1, 4):
            for place in range(200):
                tap.offer(decided(now=now))
                taken += [now * 1000 + place for _ in drained(samples)]
    tap.close()
    by_second = [[each % 1000 for each in taken if each // 1000 == now] for now in range(1, 4)]
    assert all(len(second) <= 10 for second in by_second)
    assert all(second[-1] - second[0] > 150 for second in by_second[1:])


def test_who_goes_is_noticed_and_who_comes_again_found(tmp_path: Path) -> None:
    tap = ShadowTap(tmp_path)
    with listen(tmp_path) as samples:
        tap.offer(decided(now=1))
        assert samples.recv(65536)
    for now in (1, 2):
        tap.offer(decided(now=now))
    with listen(tmp_path) as samples:
        tap.offer(decided(now=3))
        assert parse_sample(samples.recv(65536)).dropped == 0
    tap.close()


# --- The evaluation, in its own process ---------------------------------------------------------------------------


@pytest.fixture
async def runner(tmp_path: Path) -> AsyncIterator[ShadowRunner]:
    made = ShadowRunner(tmp_path / "shadow", KEY.public_key, PolicySettings(decision_timeout=5.0), MemoryAuditLog())
    yield made
    await made.close()


async def compared(runner: ShadowRunner, count: int) -> dict[str, object]:
    async with asyncio.timeout(60):
        while (found := dict(runner.status())).get("compared", 0) < count:  # type: ignore[operator]
            await asyncio.sleep(0.05)
    return found


async def test_a_candidate_is_asked_and_its_differences_are_counted_and_kept(
    runner: ShadowRunner, tmp_path: Path
) -> None:
    begun = await runner.start(bundle("y"), "op")
    assert (begun["running"], begun["revision"]) == (True, 7)
    tap = ShadowTap(tmp_path / "shadow")
    for decision in (decided(), decided(path="y"), decided(allow=False, path="y"), decided(allow=False, path="z")):
        tap.offer(decision)
    found = await compared(runner, 4)
    assert found["differences"] == [
        {"route": "r", "kind": "now_denied", "count": 1},
        {"route": "r", "kind": "now_permitted", "count": 1},
    ]
    assert (found["seen"], found["dropped"]) == (4, 0)
    ended = await runner.stop("op")
    assert (ended["running"], ended["different"]) == (False, 2)
    records = ended["records"]
    assert [(each["decision"], each["kind"]) for each in records] == [("d-1", "now_denied"), ("d-1", "now_permitted")]
    kinds = [(event.kind, event.actor, event.subject) for event in runner._audit.events]  # type: ignore[attr-defined]
    assert kinds == [("policy.shadow_started", "op", "revision/7"), ("policy.shadow_stopped", "op", "revision/7")]
    tap.close()


async def test_it_has_the_lowest_priority_and_ends_with_us(runner: ShadowRunner) -> None:
    await runner.start(bundle("y"), "op")
    process = runner._process
    assert process is not None
    assert os.getpriority(os.PRIO_PROCESS, process.pid) == 19
    await runner.close()
    assert process.returncode == 0


async def test_one_at_a_time_and_none_that_is_not_ours(runner: ShadowRunner) -> None:
    forged = build(workspace(grants=GRANTS % "y"), 8, 1, CompileSettings()).signed(new_signing_key())
    with pytest.raises(Fault) as caught:
        await runner.start(forged, "op")
    assert caught.value.reason is Reason.REVISION_SIGNATURE
    with pytest.raises(Fault) as caught:
        await runner.stop("op")
    assert caught.value.reason is Reason.NOT_FOUND
    await runner.start(bundle("y"), "op")
    with pytest.raises(Fault) as caught:
        await runner.start(bundle("y"), "op")
    assert caught.value.reason is Reason.CONFLICT


async def test_a_candidate_that_does_not_load_is_refused(runner: ShadowRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.shadow.runner.CANDIDATE", "elsewhere")
    with pytest.raises(Fault) as caught:
        await runner.start(bundle("y"), "op")
    assert caught.value.reason is Reason.ENGINE_FAILED
    assert not runner.status()["running"]


async def test_what_is_no_sample_harms_nothing(runner: ShadowRunner, tmp_path: Path) -> None:
    await runner.start(bundle("x"), "op")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        connect(sender, tmp_path / "shadow")
        for raw in (b"", b"garbage", b"{}", b"\xff" * 1000):
            sender.send(raw)
    tap = ShadowTap(tmp_path / "shadow")
    tap.offer(decided())
    assert (await compared(runner, 1))["different"] == 0
    tap.close()
