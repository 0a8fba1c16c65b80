"""Real servers as upstreams: nginx, etcd, aiohttp. Each says what it saw."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import ClientSession, web

from policies.upstreams import Address

_NGINX = """
daemon off; master_process off; pid {folder}/nginx.pid; error_log stderr crit;
events {{ worker_connections 64; }}
http {{
  log_format seen '$request_method $request_uri $uri';
  access_log {folder}/seen.log seen;
  client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  merge_slashes off;
  server {{
    listen 127.0.0.1:{port};
    location / {{ return 200 "$request_method $request_uri\\n"; }}
  }}
}}
"""


@dataclass
class Seen:
    """Requests as `METHOD target`, in the order of their coming. For nginx, `decoded` has the path that it acts on."""

    address: Address
    log: Path | None = None
    requests: list[str] = field(default_factory=list)

    def all(self) -> list[str]:
        return self.requests if self.log is None else [" ".join(line.split(" ")[:2]) for line in self._lines()]

    def decoded(self) -> list[str]:
        return [line.split(" ", 2)[2] for line in self._lines()]

    def _lines(self) -> list[str]:
        assert self.log is not None
        return self.log.read_text().splitlines()


@contextlib.asynccontextmanager
async def nginx(folder: Path) -> AsyncIterator[Seen]:
    address = Address("127.0.0.1", _free_port())
    configuration = folder / "nginx.conf"
    configuration.write_text(_NGINX.format(folder=folder, port=address.port))
    command = [shutil.which("nginx") or "/usr/sbin/nginx", "-p", str(folder), "-c", str(configuration)]
    async with _process(command, address):
        yield Seen(address, folder / "seen.log")


@contextlib.asynccontextmanager
async def etcd(folder: Path) -> AsyncIterator[Seen]:
    """etcd tells nobody what it saw; ask it for its keys."""
    address, peer = Address("127.0.0.1", _free_port()), _free_port()
    client, other = f"http://127.0.0.1:{address.port}", f"http://127.0.0.1:{peer}"
    command = [
        *("etcd", "--data-dir", str(folder / "etcd"), "--log-level", "error", "--unsafe-no-fsync"),
        *("--listen-client-urls", client, "--advertise-client-urls", client),
        *("--listen-peer-urls", other, "--initial-advertise-peer-urls", other),
        *("--initial-cluster", f"default={other}"),
    ]
    async with _process(command, address):
        await _healthy(f"{client}/health")
        yield Seen(address)


@contextlib.asynccontextmanager
async def aiohttp_server() -> AsyncIterator[Seen]:
    seen = Seen(Address("127.0.0.1", _free_port()))

    async def answer(request: web.Request) -> web.Response:
        seen.requests.append(f"{request.method} {request.raw_path}")
        return web.Response(body=await request.read() or b"ok")

    application = web.Application(client_max_size=64 << 20)
    application.router.add_route("*", "/{tail:.*}", answer)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, seen.address.host, seen.address.port).start()
    try:
        yield seen
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def _process(command: list[str], address: Address) -> AsyncIterator[None]:
    process = await asyncio.create_subprocess_exec(*command)
    try:
        await _listening(address)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _listening(address: Address) -> None:
    async with asyncio.timeout(30):
        while True:
            try:
                _, writer = await asyncio.open_connection(address.host, address.port)
            except OSError:
                await asyncio.sleep(0.02)
            else:
                writer.close()
                return


async def _healthy(url: str) -> None:
    async with asyncio.timeout(30), ClientSession() as session:
        while True:
            async with session.get(url) as answer:
                if answer.status == 200:
                    return
            await asyncio.sleep(0.02)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
