"""Clients of others speak HTTP/2 with the gateway: curl, and nghttp of nghttp2."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gateway.proxy.http2_budget import Flood
from tests.support.gateway import HOST, DataPlane, RawUpstream
from tests.support.http2 import http2_to

BIG = bytes(range(256)) * 8_000


class Echo(RawUpstream):
    """Answers with the body that it got; to a GET with two megabytes."""

    def __init__(self) -> None:
        super().__init__(self.echo)

    async def echo(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            self.seen.append(head)
            body = BIG if head.startswith(b"GET ") else b""
            if b"content-length: " in head:
                body = await reader.readexactly(int(head.split(b"content-length: ")[1].split(b"\r\n")[0]))
            elif b"transfer-encoding: chunked" in head:
                while size := int(await reader.readline(), 16):
                    body += (await reader.readexactly(size + 2))[:-2]
                await reader.readline()
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)


async def run(*words: str) -> bytes:
    process = await asyncio.create_subprocess_exec(
        *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(60):
        out, error = await process.communicate()
    assert process.returncode == 0, error.decode()
    return out


def curl(plane: DataPlane, *more: str) -> list[str]:
    pair, root = plane.pair(), plane.folder / "root.pem"
    root.write_bytes(plane.authority.pem)
    proven = ["--cert", str(pair.certificate), "--key", str(pair.key), "--cacert", str(root)]
    port = plane.address[1]
    return ["curl", "-sS", "--http2", *proven, "--resolve", f"{HOST}:{port}:127.0.0.1", *more]


@pytest.mark.parametrize(
    ("words", "framing"),
    [
        (("--data-binary", "@{file}"), b"content-length: 2048000\r\n"),
        (("--upload-file", "{file}"), b"content-length: 2048000\r\n"),
        (("--upload-file", "-"), b"transfer-encoding: chunked\r\n"),
    ],
    ids=["post", "put", "unknown-length"],
)
async def test_curl_sends_bodies_and_gets_them_back(tmp_path: Path, words: tuple[str, ...], framing: bytes) -> None:
    file = tmp_path / "body"
    file.write_bytes(BIG)
    upstream = Echo()
    async with http2_to(upstream, tmp_path) as plane:
        target = f"https://{HOST}:{plane.address[1]}/x"
        asked = " ".join(curl(plane, *(word.format(file=file) for word in words), target))
        told = await run("sh", "-c", f"{asked} < {file}")
        assert told == BIG
    assert framing in upstream.seen[0]
    assert b"via: 2.0 sallyport\r\n" in upstream.seen[0]


async def test_curl_asks_several_things_of_one_connection(tmp_path: Path) -> None:
    async with http2_to(Echo(), tmp_path) as plane:
        target = f"https://{HOST}:{plane.address[1]}"
        out = ("-o", "/dev/null", "-w", "%{http_version} %{http_code} %{size_download} %{num_connects}\n")
        words = curl(plane, f"{target}/a", *out, "--next", *curl(plane)[1:], f"{target}/b//c", *out)
        assert await run(*words) == b"2 200 2048000 1\n2 400 297 0\n"


async def test_nghttp_asks_for_many_at_once(tmp_path: Path) -> None:
    """It begins with a tree of priorities, and opens windows as it likes."""
    async with http2_to(Echo(), tmp_path) as plane:
        pair = plane.pair()
        proven = ["--cert", str(pair.certificate), "--key", str(pair.key)]
        url = f"https://127.0.0.1:{plane.address[1]}/x"
        words = ["nghttp", "-s", "-n", "-m", "20", "-w", "20", *proven, "-H", f":authority: {HOST}", url]
        told = (await run(*words)).decode()
        assert told.count(" 200   1M /x\n") == 20, told
        assert plane.metrics.floods == list[Flood]()
        assert plane.metrics.refused == []
