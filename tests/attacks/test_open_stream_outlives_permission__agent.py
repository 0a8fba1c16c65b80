"""Row "open stream outlives permission" (envoy#14504, pomerium#1279, tailscale#859, consul#6454), on the node that is
called: what its newest signed revision no longer offers, and what its settings no longer name, is cut though the
gateway says nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from agent.services import Service, refuse_all
from foundation.reasons import Reason
from foundation.wire.streams import StreamCall
from tests.fakes.gateway import FakeGateway
from tests.fakes.trust import spiffe
from tests.support.certificates import SmallAuthority
from tests.support.tunnels import Node

CALL = StreamCall(spiffe("edge-x"), ("edge",), "route", "db", "tcp", 1, "d-7")


@pytest.mark.parametrize("change", ["revision", "settings"])
async def test_an_offer_that_is_taken_back_cuts_what_is_open(tmp_path: Path, change: str) -> None:
    server = await asyncio.start_server(lambda reader, writer: reader.read(-1), "127.0.0.1", 0)
    where = f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with FakeGateway(SmallAuthority(tmp_path)).listening() as gateway:
        node = Node(gateway.authority, [gateway.address], services={"db": where})
        async with node.running(), asyncio.timeout(10):
            caller = (await gateway.tunnel()).call(CALL)
            assert await caller.answer is None
            if change == "revision":
                node.services.check = refuse_all
                node.services.offers_changed()
                assert await caller.broke_off is Reason.REVISION_MISSING
            else:
                node.services.use({"db": Service.parse("tcp://127.0.0.1:1", "offers")})
                assert await caller.broke_off is Reason.SERVICE_NOT_OFFERED
    server.close()
