"""Row "context switched by SNI keeps the old verify mode" (pyopenssl#255): one listener has one regime. Without a
client certificate the handshake fails, whatever name is asked for, or none."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest

from foundation.reasons import Reason
from foundation.tls import client_context
from tests.support.certificates import SmallAuthority
from tests.support.gateway import HOST, DataPlane, RawClient, RawUpstream, gateway_to, request_bytes

NAMES = [HOST, "api.example", "console.example", "localhost", "", "a" * 63 + ".example"]


async def answer_to(plane: DataPlane, context: ssl.SSLContext, name: str) -> bytes:
    """What a request is answered before the connection ends."""
    try:
        reader, writer = await asyncio.open_connection(*plane.address, ssl=context, server_hostname=name)
    except (ssl.SSLError, ConnectionError):
        return b""
    client = RawClient(reader, writer)
    plane.clients.append(client)
    client.send(request_bytes("GET", "/x"))
    return await client.ended()


@pytest.mark.parametrize("name", NAMES)
async def test_no_certificate_no_connection_under_any_name(tmp_path: Path, name: str) -> None:
    upstream = RawUpstream()
    async with gateway_to(upstream, tmp_path) as plane:
        context = client_context(plane.authority.pem, check_hostname=False)
        assert await answer_to(plane, context, name) == b""
        await plane.until(lambda: plane.metrics.refused == [Reason.CLIENT_CERTIFICATE_INVALID])
    assert upstream.dials == 0


@pytest.mark.parametrize("name", NAMES)
async def test_a_strangers_certificate_makes_no_connection_under_any_name(tmp_path: Path, name: str) -> None:
    upstream = RawUpstream()
    async with gateway_to(upstream, tmp_path) as plane:
        (tmp_path / "other").mkdir()
        stranger = SmallAuthority(tmp_path / "other", "fleet").client("spiffe://fleet.example/node/edge-1")
        context = client_context(plane.authority.pem, pair=stranger, check_hostname=False)
        assert await answer_to(plane, context, name) == b""
        await plane.until(lambda: plane.metrics.refused == [Reason.CLIENT_CERTIFICATE_INVALID])
    assert upstream.dials == 0


async def test_the_listeners_context_is_one_and_requires_a_certificate(tmp_path: Path) -> None:
    async with gateway_to(RawUpstream(), tmp_path) as plane:
        assert plane.context.verify_mode is ssl.CERT_REQUIRED
        assert plane.context.sni_callback is None
