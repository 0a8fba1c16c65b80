"""The node's own program against the authority's own listeners: enrol, renew, and what the feed then says."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import aiohttp

from agent.enrol import enrol
from agent.renew import renew
from agent.settings import AgentSettings
from agent.store import NodeStore
from foundation.clock import SystemClock
from foundation.identifiers import Kind
from foundation.tls import client_context
from tests.support.installation import installation
from tests.support.node import node_id
from tests.support.swtpm import EmulatedTpm, TpmMaker, maker, swtpm

__all__ = ["maker", "swtpm"]


def _quiet(_step: str) -> None:
    pass


async def test_the_agent_enrols_and_renews(tmp_path: Path, swtpm: EmulatedTpm, maker: TpmMaker) -> None:
    async with (
        installation(tmp_path / "site", virtual=(maker.root,)) as site,
        site.enrolling() as enrolment,
        site.serving() as api,
    ):
        settings = AgentSettings(
            directory=tmp_path / "node",
            authority=enrolment,
            renewal=api,
            node="edge-1",
            tcti=swtpm.tcti,
            event_log=swtpm.event_log,
        )
        store = NodeStore(settings.directory)
        first = await enrol(settings, await site.token(), store, SystemClock(), _quiet)
        site.clock.advance(60)
        second = await renew(settings, store, SystemClock(), _quiet)
        rows = [row for row in await site.authority.ledger.page(node_id()) if row.certificate]
    assert first.issued.chain[0] != second.issued.chain[0]
    assert len(rows) == 2


async def test_a_gateway_follows_the_feed(tmp_path: Path) -> None:
    async with installation(tmp_path / "site") as site:
        pair = await site.certify("eu-1", Kind.GATEWAY)
        connector = aiohttp.TCPConnector(ssl=client_context(site.root_pem, pair=pair))
        async with (
            site.serving() as address,
            aiohttp.ClientSession(connector=connector) as session,
            session.get(f"https://localhost:{address.port}/v1/feed") as response,
            asyncio.timeout(20),
        ):
            lines: list[dict[str, object]] = []
            while not lines or lines[-1]["type"] != "heartbeat":
                lines.append(json.loads(await response.content.readline()))
            await site.authority.inventory.quarantine(site.id("eu-1", Kind.GATEWAY), "ada")
            last = json.loads(await response.content.readline())
    assert response.headers["Content-Type"] == "application/x-ndjson"
    assert {line["type"] for line in lines} >= {"identity", "heartbeat"}
    assert last["type"] == "identity"
    assert last["record"]["state"] == "quarantined"
