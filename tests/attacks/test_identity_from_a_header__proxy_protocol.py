"""Row "identity from a header", for PROXY v2: the header is believed of nobody but the networks that the settings name,
on a listener that demands it, and is never an identity."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from foundation.reasons import Reason
from foundation.tls import client_context
from foundation.wire.proxy_protocol import Addresses, proxy_header
from gateway.proxy.services import GatewayListenerSettings
from tests.support.gateway import HOST, DataPlane, RawUpstream, gateway_to, request_bytes

TOLD = proxy_header(Addresses(("10.0.0.1", 1), ("10.0.0.2", 443)))


async def ask(plane: DataPlane, told: bytes, *, proven: bool) -> bytes:
    """What comes back of a request behind `told`."""
    pair = plane.pair() if proven else None
    reader, writer = await asyncio.open_connection(*plane.address)
    try:
        writer.write(told)
        await writer.start_tls(
            client_context(plane.authority.pem, pair=pair, check_hostname=False), server_hostname=HOST
        )
        writer.write(request_bytes("GET", "/x"))
        return await reader.readuntil(b"\r\n\r\n")
    except (OSError, EOFError):
        return b""
    finally:
        writer.close()


@pytest.mark.parametrize(
    ("networks", "told", "proven"),
    [
        (("10.0.0.0/8",), TOLD, True),  # not from there
        (("127.0.0.0/8",), TOLD, False),  # no certificate
        (("127.0.0.0/8",), b"", True),  # no header
        ((), TOLD, True),  # not demanded
    ],
)
async def test_nobody_else_is_believed(tmp_path: Path, networks: tuple[str, ...], told: bytes, proven: bool) -> None:
    upstream = RawUpstream()
    async with gateway_to(upstream, tmp_path, GatewayListenerSettings(proxy_protocol_from=networks)) as plane:
        assert await ask(plane, told, proven=proven) == b""
        await plane.until(lambda: bool(plane.metrics.refused))
        assert plane.metrics.refused[0] in {Reason.PROXY_HEADER_INVALID, Reason.CLIENT_CERTIFICATE_INVALID}
    assert upstream.seen == []


async def test_the_header_names_no_caller(tmp_path: Path) -> None:
    upstream = RawUpstream()
    async with gateway_to(upstream, tmp_path, GatewayListenerSettings(proxy_protocol_from=("127.0.0.0/8",))) as plane:
        assert (await ask(plane, TOLD, proven=True)).startswith(b"HTTP/1.1 200")
    assert b"x-sallyport-identity: spiffe://fleet.example/node/edge-1\r\n" in upstream.seen[0]
    assert b"10.0.0.1" not in upstream.seen[0]
