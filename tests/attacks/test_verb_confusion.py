"""Row "verb confusion" (kubernetes#78741): an exec over a WebSocket is a GET on the wire, and `create` for policy. The
method that policy sees is the one that the upstream gets, whatever override is asked for."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from policies.model import Answer, Query
from tests.fakes.trust import ALLOW, DENY
from tests.support.gateway import RawUpstream, gateway_to, request_bytes

EXEC = "/api/v1/namespaces/default/pods/p/exec?command=sh"
KEY = base64.b64encode(b"0123456789abcdef").decode()
ASKS = ("Connection: upgrade", "Upgrade: websocket", f"Sec-WebSocket-Key: {KEY}", "Sec-WebSocket-Version: 13")


def reads_only(query: Query) -> Answer:
    return ALLOW if query.request.action == "get" else DENY


@pytest.mark.parametrize("cached", [True, False])
async def test_who_may_only_read_may_not_exec(tmp_path: Path, cached: bool) -> None:
    upstream = RawUpstream()
    async with gateway_to(upstream, tmp_path, upgrades=("websocket",)) as plane:
        plane.engine.answer, plane.engine.cached = reads_only, cached
        client = await plane.connect()
        assert (await client.get(EXEC)).status == 200
        assert (await client.get(EXEC, *ASKS)).status == 403
        assert plane.recorded.entries[-1].allow is False
    assert len(upstream.seen) == 1


@pytest.mark.parametrize(
    "name", ["X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override", "X_HTTP_METHOD_OVERRIDE"]
)
async def test_no_override_makes_a_read_a_write(tmp_path: Path, name: str) -> None:
    upstream = RawUpstream()
    async with gateway_to(upstream, tmp_path) as plane:
        plane.engine.answer = reads_only
        client = await plane.connect()
        assert (await client.ask(request_bytes("GET", "/x", f"{name}: DELETE"))).status == 200
        assert (await client.ask(request_bytes("DELETE", "/x", f"{name}: GET"))).status == 403
    assert [b"DELETE" in each for each in upstream.seen] == [False]


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_who_may_only_read_opens_no_spdy_stream_by_either_method(tmp_path: Path, method: str) -> None:
    upstream = RawUpstream()
    async with gateway_to(upstream, tmp_path, upgrades=("spdy/3.1",)) as plane:
        plane.engine.answer = reads_only
        client = await plane.connect()
        assert (await client.ask(request_bytes(method, EXEC, "Connection: Upgrade", "Upgrade: SPDY/3.1"))).status == 403
    assert upstream.dials == 0
