"""h2spec against a data plane: `make h2spec`. Exit code 1 when the gateway breaks one of its cases.

h2spec has no client certificate, so a relay stands between: it takes TLS from h2spec, and has one for the gateway.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import uvloop

from foundation.tls import HTTP_2, client_context, server_context
from tests.support.gateway import HOST, DataPlane, RawUpstream
from tests.support.http2 import http2_to

SECONDS_EACH = "3"


async def main() -> int:
    with tempfile.TemporaryDirectory(prefix="h2spec-") as folder:
        async with http2_to(RawUpstream(), Path(folder)) as plane, _relay(plane) as port:
            words = ["-t", "-k", "--strict", "-h", "127.0.0.1", "-p", str(port), "-P", "/x", "-o", SECONDS_EACH]
            process = await asyncio.create_subprocess_exec("h2spec", *words)
            passing = asyncio.create_task(_let_time_pass(plane))
            try:
                return await process.wait()
            finally:
                passing.cancel()


async def _let_time_pass(plane: DataPlane) -> None:
    while True:
        await asyncio.sleep(0.25)
        await plane.advance(0.25)


@contextlib.asynccontextmanager
async def _relay(plane: DataPlane) -> AsyncIterator[int]:
    """The port of the relay to `plane`."""
    proven = client_context(plane.authority.pem, pair=plane.pair(), check_hostname=False, protocols=(HTTP_2,))
    pipes: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection(*plane.address, ssl=proven, server_hostname=HOST)
        for source, sink in ((reader, there[1]), (there[0], writer)):
            pipe = asyncio.create_task(_pipe(source, sink))
            pipes.add(pipe)
            pipe.add_done_callback(pipes.discard)

    welcoming = server_context(plane.server, client_roots=None, protocols=(HTTP_2,))
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=welcoming)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for pipe in list(pipes):
            pipe.cancel()
        await asyncio.gather(*pipes, return_exceptions=True)


async def _pipe(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(1 << 16):
            sink.write(data)
            await sink.drain()
    sink.close()


if __name__ == "__main__":
    sys.exit(uvloop.run(main()))
