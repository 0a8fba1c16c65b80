"""Requests go through, both ways, as they were authorised."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.gateway import RawUpstream, gateway_to


@pytest.mark.parametrize("cached", [True, False])
async def test_a_permitted_request_is_forwarded_and_answered(tmp_path: Path, cached: bool) -> None:
    upstream = RawUpstream()
    async with gateway_to(upstream, tmp_path) as plane:
        plane.engine.cached = cached
        client = await plane.connect()
        for _ in range(3):
            answered = await client.get("/v1/things?x=1")
            assert (answered.status, answered.body) == (200, b"ok")
            assert answered.header("x-sallyport-decision") == plane.recorded.entries[-1].id
    assert upstream.dials == 1
    assert upstream.seen[0].startswith(b"GET /v1/things?x=1 HTTP/1.1\r\nhost: control.example\r\n")
    assert b"x-sallyport-identity: spiffe://fleet.example/node/edge-1\r\n" in upstream.seen[0]
    assert plane.registry.open_count == 0
