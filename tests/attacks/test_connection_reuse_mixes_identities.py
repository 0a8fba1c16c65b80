"""Class "connection reuse mixes identities": an upstream that authenticates a connection, by its first request or by
the address that PROXY v2 names, takes everything on it for one caller's. No second caller may be lent that
connection."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from foundation.wire.proxy_protocol import FIXED_BYTES, remaining
from tests.support.gateway import Handler, RawUpstream, gateway_to


async def by_first_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Knows a connection by its first request, as NTLM does, and answers with who that was."""
    owner = b""
    while True:
        head = await reader.readuntil(b"\r\n\r\n")
        found = re.search(rb"x-sallyport-identity: (\S+)", head)
        owner = owner or (found[1] if found else b"nobody")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(owner), owner))


async def behind_a_header(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The same, once PROXY v2 said where the connection comes from."""
    fixed = await reader.readexactly(FIXED_BYTES)
    await reader.readexactly(remaining(fixed))
    await by_first_request(reader, writer)


@pytest.mark.parametrize(
    ("handler", "pool"), [(by_first_request, {"per_identity": True}), (behind_a_header, {"proxy_protocol": True})]
)
async def test_nobody_speaks_through_what_somebody_else_authenticated(
    tmp_path: Path, handler: Handler, pool: dict[str, bool]
) -> None:
    async with gateway_to(RawUpstream(handler), tmp_path, pool=pool) as plane:
        clients = {}
        for number in range(3):
            plane.know(f"edge-{number}")
            clients[f"edge-{number}"] = await plane.connect(plane.pair(f"edge-{number}"))
        for _ in range(3):
            for name, client in clients.items():
                assert (await client.get()).body.decode().endswith(f"/node/{name}")
