"""The gateway between clients and upstreams that know nothing of it: curl, etcd's watch, nginx, WebSocket.

The client is curl with the first operator's certificate, as SECURITY.md and the README show it. It speaks HTTP/1.1
where a test is about that, and otherwise what it agrees on with the gateway.
"""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from foundation.tls import client_context
from tests.support.peers import Nginx, echo_server
from tests.support.processes import PATIENCE, status
from tests.support.system import System

HTTP_1, HTTP_2 = "--http1.1", "--http2"
LARGE = 200 << 20
# What the gateway may hold of streams in all: buffers of both sides, and what the allocator keeps.
HELD_BYTES = 48 << 20
ROUTES = """
  - {{name: files, prefix: /files, upstreams: [{files}], kinds: [operator], class: standard, max_body: 1GiB}}
  - {{name: small, prefix: /files/upload/small, upstreams: [{files}], kinds: [operator], max_body: 1KiB}}
  - {{name: echo, prefix: /echo, upstreams: [{echo}], kinds: [operator], upgrades: [websocket]}}
"""
GRANTS = """
  - {id: files-all, role: fleet-operator, route: files, methods: [GET, PUT], paths: [/files/**], expires: 2027-12-31}
  - {id: small, role: fleet-operator, route: small, methods: [PUT], paths: [/files/upload/**], expires: 2027-12-31}
  - {id: echo, role: fleet-operator, route: echo, methods: [GET, UPGRADE], paths: [/echo/**], expires: 2027-12-31}
"""


@dataclass
class Site:
    """A system with nginx and an echo service behind it; curl's words for it."""

    system: System
    nginx: Nginx

    @property
    def url(self) -> str:
        return f"https://localhost:{self.system.ports['gateway']}"

    def words(self, *more: str) -> list[str]:
        pair, root = self.system.operator, self.system.authority / "root.pem"
        proven = ["--cert", str(pair.certificate), "--key", str(pair.key), "--cacert", str(root)]
        return ["curl", "--silent", "--show-error", "--max-time", str(PATIENCE), *proven, *more]

    def curl(self, *more: str) -> bytes:
        done = subprocess.run(self.words(*more), capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout


@pytest.fixture(scope="module")
def site(system: System, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("upstreams")
    with Nginx(folder / "nginx").running() as nginx, echo_server(folder) as echo:
        (nginx.root / "files" / "plain.txt").write_text("plain\n")
        (nginx.root / "files" / "zipped" / "plain.txt").write_text("plain\n" * 100)
        system.add_policy(ROUTES.format(files=nginx.url, echo=echo), GRANTS)
        system.publish()
        roles = ("security", "operator", "viewer", "fleet-operator")
        words = [word for role in roles for word in ("--role", role)]
        system.operate("inventory", "update", "admin", "--kind", "operator", *words)
        yield Site(system, nginx)


def test_curl_calls_the_control_plane_with_an_operators_certificate(site: Site) -> None:
    assert b"etcdserver" in site.curl(f"{site.url}/version")


def test_a_refusal_tells_curl_reason_remedy_and_decision(site: Site) -> None:
    answer = site.curl(HTTP_1, "--include", "-X", "DELETE", f"{site.url}/version").decode()
    head, _, body = answer.partition("\r\n\r\n")
    problem = json.loads(body)
    assert head.startswith("HTTP/1.1 403 ")
    assert "content-type: application/problem+json" in head.lower()
    assert problem["reason"] == "method_not_granted"
    assert problem["remedy"]
    assert f"x-sallyport-decision: {problem['decision']}" in head.lower()


def test_curl_without_a_certificate_gets_no_answer(site: Site) -> None:
    root = str(site.system.authority / "root.pem")
    done = subprocess.run(
        ["curl", "--silent", "--cacert", root, f"{site.url}/version"], capture_output=True, check=False
    )
    assert done.returncode != 0
    assert done.stdout == b""


def test_a_watch_hands_on_each_event_while_it_is_open(site: Site) -> None:
    key = base64.b64encode(b"watched").decode()
    words = site.words("--no-buffer", "-d", json.dumps({"create_request": {"key": key}}), f"{site.url}/v3/watch")
    with subprocess.Popen(words, stdout=subprocess.PIPE) as watch:
        assert watch.stdout is not None
        assert json.loads(watch.stdout.readline())["result"]["created"]
        for value in ("b25l", "dHdv"):
            site.curl("-d", json.dumps({"key": key, "value": value}), f"{site.url}/v3/kv/put")
            event = json.loads(watch.stdout.readline())["result"]["events"][0]
            assert event["kv"]["value"] == value
        watch.kill()


@pytest.fixture(scope="module")
def large(site: Site) -> Path:
    """200 MiB that do not compress into nothing: a counter in each block."""
    path = site.nginx.root / "files" / "large"
    with path.open("wb") as file:
        for number in range(LARGE >> 20):
            file.write(hashlib.sha256(number.to_bytes(8, "big")).digest() * (1 << 15))
    return path


@pytest.mark.parametrize("version", [HTTP_1, HTTP_2])
def test_a_large_body_streams_down_in_bounded_memory(site: Site, large: Path, tmp_path: Path, version: str) -> None:
    before = _memory_from_now(site)
    site.curl(version, "--output", str(tmp_path / "got"), f"{site.url}/files/large")
    assert _sha256(tmp_path / "got") == _sha256(large)
    assert _most_memory(site) - before < HELD_BYTES


def test_readers_who_stop_cost_bounded_memory_and_hold_up_nobody(site: Site, large: Path) -> None:
    before = _memory_from_now(site)
    stopped = [site.system.connect_operator() for _ in range(8)]
    for each in stopped:
        each.connection.request("GET", "/files/large")
        assert len(each.connection.getresponse().read(1 << 16)) == 1 << 16
    # As long as this takes, the gateway could read for them, too.
    assert site.curl(f"{site.url}/files/large", "-o", "/dev/null", "-w", "%{size_download}") == str(LARGE).encode()
    assert _most_memory(site) - before < HELD_BYTES
    for each in stopped:
        each.connection.close()


@pytest.mark.parametrize(
    "framing",
    [(HTTP_1,), (HTTP_1, "-H", "Transfer-Encoding: chunked"), (HTTP_2,)],
    ids=["length", "chunked", "http2"],
)
def test_a_large_body_streams_up_in_bounded_memory(site: Site, large: Path, framing: tuple[str, ...]) -> None:
    before, target = _memory_from_now(site), "up" + "".join(framing).replace(" ", "")
    site.curl("--upload-file", str(large), *framing, f"{site.url}/files/upload/{target}")
    assert _sha256(site.nginx.root / "files" / "upload" / target) == _sha256(large)
    assert _most_memory(site) - before < HELD_BYTES


def test_a_body_beyond_the_routes_bound_is_refused_and_nothing_is_kept(site: Site, large: Path) -> None:
    target = f"{site.url}/files/upload/small/file"
    chunked = (HTTP_1, "-H", "Transfer-Encoding: chunked", "-H", "Expect:")
    for framing in ((HTTP_1,), chunked, (HTTP_2,)):
        status = site.curl("--upload-file", str(large), *framing, "-o", "/dev/null", "-w", "%{http_code}", target)
        assert status == b"413"
    assert not (site.nginx.root / "files" / "upload" / "small").exists()


def test_a_chunked_answer_arrives_whole(site: Site) -> None:
    target = f"{site.url}/files/zipped/plain.txt"
    answer = site.curl(HTTP_1, "--include", "--raw", "-H", "Accept-Encoding: gzip", target)
    assert b"transfer-encoding: chunked" in answer.lower()
    assert site.curl("--compressed", target) == b"plain\n" * 100


def test_head_tells_the_length_and_the_connection_goes_on(site: Site) -> None:
    target = f"{site.url}/files/plain.txt"
    answers = site.curl(HTTP_1, "--head", target, target).decode().lower()
    assert answers.count("http/1.1 200 ") == 2
    assert answers.count("content-length: 6\r\n") == 2
    written = site.curl("--head", target, target, "-o", "/dev/null", "-w", "%{num_connects} ")
    assert written.split()[-1:] == [b"0"]


def test_not_modified_has_no_body_and_the_connection_goes_on(site: Site) -> None:
    target = f"{site.url}/files/plain.txt"
    etag = site.curl("--head", "-o", "/dev/null", "-w", "%header{etag}", target).decode()
    again = site.curl("-H", f"If-None-Match: {etag}", "-w", "%{http_code} %{num_connects} ", target, target)
    assert again == b"304 1 304 0 "


def test_a_range_is_passed_on(site: Site) -> None:
    assert site.curl("--range", "1-3", f"{site.url}/files/plain.txt") == b"lai"


async def test_a_websocket_speaks_both_ways_through_the_gateway(site: Site) -> None:
    context = client_context(site.system.root, pair=site.system.operator)
    async with aiohttp.ClientSession() as session:
        async with session.ws_connect(f"{site.url}/echo/ws", ssl=context, protocols=("plain",)) as socket:
            assert socket.protocol == "plain"
            await socket.send_str("hello")
            assert await socket.receive_str() == "hello"
            await socket.send_bytes(b"\x00" * (1 << 20))
            assert await socket.receive_bytes() == b"\x00" * (1 << 20)
        assert socket.close_code == 1000


async def test_an_upgrade_is_refused_where_the_route_names_none(site: Site) -> None:
    context = client_context(site.system.root, pair=site.system.operator)
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await session.ws_connect(f"{site.url}/files/ws", ssl=context)
    assert refused.value.status in {400, 403}


def test_an_upstream_that_is_down_is_told_as_such(site: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    site.system.add_policy(
        f"\n  - {{name: gone, prefix: /gone, upstreams: ['http://127.0.0.1:{port}'], kinds: [operator]}}\n",
        "\n  - {id: gone, role: fleet-operator, route: gone, methods: [GET], paths: [/gone], expires: 2027-12-31}\n",
    )
    site.system.publish()
    assert json.loads(site.curl(f"{site.url}/gone"))["reason"] == "upstream_unreachable"


def _memory_from_now(site: Site) -> int:
    """The memory in bytes of all processes of the gateway; their high-water marks begin here (proc(5), clear_refs)."""
    found = _processes(site)
    for pid in found:
        Path(f"/proc/{pid}/clear_refs").write_text("5")
    return sum(status(pid, "VmRSS") << 10 for pid in found)


def _most_memory(site: Site) -> int:
    return sum(status(pid, "VmHWM") << 10 for pid in _processes(site))


def _processes(site: Site) -> list[int]:
    """The main process and its workers."""
    assert site.system.process is not None
    main = site.system.process.pid
    workers = Path(f"/proc/{main}/task/{main}/children").read_text().split()
    assert workers
    return [main, *map(int, workers)]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
