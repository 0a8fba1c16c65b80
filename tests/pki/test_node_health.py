"""What the authority keeps of nodes' reports, how it counts, and what a report cannot do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foundation.faults import Fault
from foundation.identifiers import SpiffeId
from foundation.reasons import Reason
from foundation.wire.health import Disk, HealthReport, Standing
from tests.support.installation import Installation, installation

WELL = HealthReport(at=5.0, interval=60, disks=(Disk("/", 100, 50),))
AILING = replace(WELL, disks=(Disk("/", 100, 1),))


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Installation]:
    async with installation(tmp_path / "site") as site:
        yield site


async def active(site: Installation, name: str) -> SpiffeId:
    await site.certify(name, site.id(name).kind)
    return site.id(name)


async def test_the_newest_report_is_kept_and_ages(site: Installation) -> None:
    node, health = await active(site, "edge-1"), site.authority.node_health
    assert (await health.of(node)).standing is Standing.UNKNOWN
    assert await health.take(node, WELL.encode()) == site.clock.now()
    first = await health.of(node)
    assert (first.standing, first.report, first.received_at) == (Standing.WELL, WELL, site.clock.now())
    site.clock.advance(60)
    await health.take(node, AILING.encode())
    assert (await health.of(node)).standing is Standing.AILING
    site.clock.advance(180)
    assert (await health.of(node)).standing is Standing.AILING
    site.clock.advance(0.5)
    silent = await health.of(node)
    assert (silent.standing, silent.report) == (Standing.SILENT, AILING)


async def test_nodes_are_listed_and_counted_by_how_they_stand(site: Installation) -> None:
    health, names = site.authority.node_health, ("a", "b", "c", "d")
    nodes = {name: await active(site, name) for name in names}
    await health.take(nodes["c"], replace(WELL, interval=1).encode())
    site.clock.advance(4)
    await health.take(nodes["a"], WELL.encode())
    await health.take(nodes["b"], AILING.encode())
    assert await health.count() == dict.fromkeys(Standing, 1)
    assert [each.node.name for each in await health.page()] == list(names)
    for standing, name in zip((Standing.WELL, Standing.AILING, Standing.SILENT, Standing.UNKNOWN), names, strict=True):
        (found,) = await health.page(standing)
        assert (found.node, found.standing) == (nodes[name], standing)
    assert [each.node.name for each in await health.page(after=str(nodes["b"]), limit=1)] == ["c"]
    await site.authority.inventory.quarantine(nodes["a"], "ada")
    assert (await health.count())[Standing.WELL] == 0


async def test_a_report_changes_nothing_but_the_report(site: Installation) -> None:
    node = await active(site, "edge-1")
    before, told = await site.authority.inventory.get(node), len(site.audit.events)
    claims = replace(WELL, versions={"agent": "9", "service/model": "7"})
    await site.authority.node_health.take(node, claims.encode())
    assert await site.authority.inventory.get(node) == before
    assert before.record.versions == {}
    assert len(site.audit.events) == told


async def test_a_node_reports_once_a_second_at_most(site: Installation) -> None:
    node, health = await active(site, "edge-1"), site.authority.node_health
    await health.take(node, WELL.encode())
    site.clock.advance(0.5)
    with pytest.raises(Fault) as caught:
        await health.take(node, AILING.encode())
    assert caught.value.reason is Reason.RATE_LIMITED
    assert (await health.of(node)).report == WELL
    site.clock.advance(0.5)
    await health.take(node, AILING.encode())


async def test_a_wrong_report_leaves_the_one_before(site: Installation) -> None:
    node, health = await active(site, "edge-1"), site.authority.node_health
    await health.take(node, WELL.encode())
    site.clock.advance(2)
    for raw in (b"", b"{}", b"x" * 20_000, WELL.encode()[:-1] + b',"roles":["security"]}'):
        with pytest.raises(Fault):
            await health.take(node, raw)
    assert (await health.of(node)).report == WELL


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(passed=st.floats(0, 400), ails=st.booleans())
async def test_the_list_and_the_judgement_agree(site: Installation, passed: float, ails: bool) -> None:
    health, node = site.authority.node_health, site.id("edge-9")
    if (await health.of(node)).standing is Standing.UNKNOWN:
        await active(site, "edge-9")
    site.clock.advance(2)
    await health.take(node, (AILING if ails else WELL).encode())
    site.clock.advance(passed)
    (listed,) = await health.page(after=str(site.id("edge-8")), limit=1)
    assert listed == await health.of(node)
    assert (await health.count())[listed.standing] == 1
