"""When a node reports, what it reports, and what it keeps."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from agent.health import HealthReporter, HealthSettings, Sources, newest, take, with_parts
from agent.restarts import Life, Phase
from foundation.faults import Fault
from foundation.fields import Fields
from foundation.reasons import Reason
from foundation.wire.health import Ailment, Bundle, Firewall, HealthReport, Outbox, Tunnels, ailments
from tests.fakes.clock import ManualClock

MINUTE = HealthSettings(interval=60, disks=(Path("/"),))


class Node:
    """A reporter whose deliveries are kept, over a clock that the test moves."""

    def __init__(self, folder: Path, **sources: Any) -> None:
        self.clock = ManualClock()
        self.got: list[HealthReport] = []
        self.fault: Fault | None = None
        self.tries: list[float] = []
        self.folder = folder
        self.tunnels = Tunnels(2, 2)
        mine = Sources(tunnels=lambda: self.tunnels, **sources)
        self.lot = 0.0
        self.reporter = HealthReporter(MINUTE, mine, folder, self.clock, lambda: self.lot, self._deliver)

    async def _deliver(self, raw: bytes) -> None:
        self.tries.append(self.clock.monotonic())
        if self.fault:
            raise self.fault
        self.got.append(HealthReport.parse(raw))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.reporter.run())
        await asyncio.sleep(0)
        yield
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    async def look(self) -> None:
        """Let 15 s pass, and the look that is due then."""
        self.clock.advance(15 * (1 - self.lot / 4))
        async with asyncio.timeout(10):
            while not self.clock._sleepers:
                await asyncio.sleep(0.001)


async def test_it_reports_when_due_and_at_once_when_something_changes(tmp_path: Path) -> None:
    node = Node(tmp_path)
    async with node.running():
        await node.look()
        assert len(node.got) == 1
        for _ in range(3):
            await node.look()
        assert len(node.got) == 1
        await node.look()
        assert len(node.got) == 2
        node.tunnels = Tunnels(1, 2)
        await node.look()
        assert Ailment.TUNNELS_MISSING in ailments(node.got[-1])
        await node.look()
        assert len(node.got) == 3
        node.tunnels = Tunnels(2, 2)
        await node.look()
        assert len(node.got) == 4
    assert newest(tmp_path) == node.got[-1]


async def test_what_was_not_delivered_is_made_anew_after_a_pause_that_grows(tmp_path: Path) -> None:
    node, tried = Node(tmp_path), []
    node.fault = Fault(Reason.SERVER_UNREACHABLE)
    node.tries = tried
    async with node.running():
        for _ in range(14):
            await node.look()
        node.tunnels = Tunnels(1, 2)  # news are no reason to ask a server more often that does not answer
        await node.look()
        assert tried == [15, 45, 105, 165, 225]
        node.fault = None
        for _ in range(4):
            await node.look()
    assert [report.at - 1_800_000_000 for report in node.got] == [285]


async def test_what_befalls_all_nodes_is_reported_by_each_in_its_own_time(tmp_path: Path) -> None:
    node = Node(tmp_path)
    async with node.running():
        for _ in range(6):
            await node.look()
        node.lot = 0.8  # of a minute
        node.tunnels = Tunnels(0, 2)
        before = len(node.got)
        begun = node.clock.monotonic()
        while len(node.got) == before:
            await node.look()
        assert Ailment.TUNNELS_MISSING in ailments(node.got[-1])
        assert 0 < node.clock.monotonic() - begun <= 60


def test_what_the_parts_know_is_put_beside_what_the_kernel_knows() -> None:
    sources = Sources(
        ends=lambda: (10.0, None),
        clock_skew=lambda: -0.5,
        tunnels=lambda: Tunnels(1, 2),
        firewall=lambda: Firewall.OFF,
        services=lambda: {"infer": Life(Phase.BACKING_OFF, 0, 2, 5, "x" * 500)},
        versions=lambda: {"infer": "1.2"},
        outbox=lambda: Outbox(1, 2, 3),
        bundle=lambda: Bundle(7, 1.5),
    )
    report = with_parts(take(MINUTE, 5.0), sources)
    assert HealthReport.parse(report.encode()) == report
    assert (report.at, report.certificate_until, report.attested_until) == (5.0, 10.0, None)
    assert report.versions["service/infer"] == "1.2"
    assert report.services[0].failures == 2
    assert report.disks[0].path == "/"


def test_without_parts_only_the_kernel_speaks(tmp_path: Path) -> None:
    report = with_parts(take(MINUTE, 5.0, tmp_path), Sources())
    assert {"at", "interval", "versions"} <= set(report.document()) <= {"at", "interval", "versions", "disks"}
    assert newest(tmp_path) is None


@pytest.mark.parametrize("wrong", [{"interval": "0s"}, {"interval": "2d"}, {"disks": "/"}, {"every": "1m"}])
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(Fault):
        HealthSettings.parse(Fields(wrong, "agent.health", Reason.SETTING_INVALID))
    assert HealthSettings.parse(Fields({}, "agent.health", Reason.SETTING_INVALID)) == HealthSettings()
