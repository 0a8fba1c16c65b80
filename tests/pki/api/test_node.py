"""What the authority serves to nodes for themselves: over mutual TLS, by the name in the certificate."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from foundation.identifiers import Kind
from foundation.tls import client_context
from foundation.wire.bundle import NodeBundle
from foundation.wire.health import Disk, HealthReport
from foundation.wire.records import CHAIN_START, NodeRecord, Receipt, RecordBatch, RecordKind
from tests.support.installation import Installation, installation

LINE = NodeRecord(1e9, RecordKind.DECISION, {"id": "n-1"}).encode()
BATCH = RecordBatch("1" * 32, 1, CHAIN_START, (LINE,)).encode()
Ask = Callable[..., Awaitable[tuple[int, bytes]]]


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Installation]:
    async with installation(tmp_path / "site") as site:
        yield site


@asynccontextmanager
async def asking(site: Installation, name: str, kind: Kind = Kind.NODE) -> AsyncIterator[Ask]:
    """Requests of a new identity."""
    pair = await site.certify(name, kind)
    connector = aiohttp.TCPConnector(ssl=client_context(site.root_pem, pair=pair))
    async with site.serving() as address, aiohttp.ClientSession(connector=connector) as session:

        async def ask(path: str, body: bytes | None = None, kind: str = "application/x-ndjson") -> tuple[int, bytes]:
            method = "GET" if body is None else "POST"
            headers = {} if body is None else {"Content-Type": kind}
            url = f"https://localhost:{address.port}{path}"
            async with session.request(method, url, data=body, headers=headers) as response:
                return response.status, await response.read()

        yield ask


async def test_a_node_gets_its_own_record_and_the_revision_in_force(site: Installation) -> None:
    await site.authority.publish_policy(7, b"the archive", "ada")
    async with asking(site, "edge-1") as ask:
        status, raw = await ask("/v1/node/bundle")
        bundle = NodeBundle.parse(raw)
        assert (status, bundle.archive, bundle.numbers.policy) == (200, b"the archive", 7)
        assert (bundle.record.id, bundle.at) == (site.id("edge-1"), site.clock.now())
        assert bundle.policy_key == site.policy_key()
        assert bundle.terms == site.settings.bundle
        older = NodeBundle.parse((await ask("/v1/node/bundle?have=6"))[1])
        assert older.archive == b"the archive"


async def test_who_has_the_revision_gets_everything_but_the_archive(site: Installation) -> None:
    await site.authority.publish_policy(7, b"the archive", "ada")
    async with asking(site, "edge-1") as ask:
        site.clock.advance(60)
        bundle = NodeBundle.parse((await ask("/v1/node/bundle?have=7"))[1])
        assert (bundle.archive, bundle.numbers.policy, bundle.at) == (b"", 7, site.clock.now())
        await site.authority.publish_policy(8, b"the next", "ada")
        assert NodeBundle.parse((await ask("/v1/node/bundle?have=7"))[1]).archive == b"the next"


async def test_before_a_revision_there_is_no_archive(site: Installation) -> None:
    async with asking(site, "edge-1") as ask:
        bundle = NodeBundle.parse((await ask("/v1/node/bundle"))[1])
        assert (bundle.archive, bundle.numbers.policy) == (b"", 0)


@pytest.mark.parametrize("kind", [Kind.OPERATOR, Kind.SERVICE, Kind.GATEWAY])
async def test_only_nodes_ask(site: Installation, kind: Kind) -> None:
    async with asking(site, "edge-1", kind) as ask:
        for answer in (await ask("/v1/node/bundle"), await ask("/v1/node/records", BATCH)):
            assert answer[0] == 403
            assert b"kind_not_allowed" in answer[1]


async def test_a_node_reports_and_is_read(site: Installation) -> None:
    async with asking(site, "edge-1") as ask:
        first, second = await ask("/v1/node/records", BATCH), await ask("/v1/node/records", BATCH)
        assert first == second
        assert Receipt.parse(first[1]).taken == 1
        for query, count in (("", 1), ("?kind=decision", 1), ("?kind=health", 0), ("?after=1", 0)):
            status, raw = await ask(f"/v1/inventory/node/edge-1/records{query}")
            assert (status, raw.count(b'"n-1"')) == (200, count)
    assert site.audit.kinds().count("node.reported") == 1


@pytest.mark.parametrize("body", [b"", b"{}\n", BATCH[:-1], BATCH + b"x\n", b"x" * (1 << 19)])
async def test_what_is_no_batch_is_refused(site: Installation, body: bytes) -> None:
    async with asking(site, "edge-1") as ask:
        assert (await ask("/v1/node/records", body))[0] in {400, 413}


REPORT = HealthReport(at=5.0, interval=60, versions={"agent": "1.0"}, disks=(Disk("/", 100, 1),)).encode()


async def test_a_node_says_how_it_is_and_is_shown_so(site: Installation) -> None:
    async with asking(site, "edge-1") as ask:
        assert b"unknown" in (await ask("/v1/inventory/node/edge-1/health"))[1]
        status, raw = await ask("/v1/node/health", REPORT, "application/json")
        assert (status, json.loads(raw)) == (200, {"at": site.clock.now()})
        shown = json.loads((await ask("/v1/inventory/node/edge-1/health"))[1])
        assert (shown["standing"], shown["ailments"]) == ("ailing", ["disk_full"])
        assert shown["reported"]["versions"] == {"agent": "1.0"}
        assert json.loads((await ask("/v1/health?standing=ailing"))[1])["items"] == [shown]
        assert json.loads((await ask("/v1/health?standing=well"))[1])["items"] == []
        assert (await ask("/v1/health?standing=fine"))[0] == 400
        assert (await ask("/v1/inventory/node/nobody/health"))[0] == 404
        assert (await ask("/v1/node/health", b"{}", "application/json"))[0] == 400
        assert (await ask("/v1/node/health", b" " * 20_000, "application/json"))[0] == 413


async def test_nobody_but_a_node_says_how_it_is(site: Installation) -> None:
    async with asking(site, "ada", Kind.OPERATOR) as ask:
        status, raw = await ask("/v1/node/health", REPORT, "application/json")
        assert (status, b"kind_not_allowed" in raw) == (403, True)
