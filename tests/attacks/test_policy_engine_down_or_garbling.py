"""attacks.md, gateway: "policy engine down or garbling" (GHSA-9g5w-hqr3-w2ph, CVE-2026-73552). Kill, hang, truncate,
non-boolean, non-UTF-8: a denial with its own reason, in time, never kept, and no exception.

The server here says whatever bytes a case names; a real OPA is killed and stopped as well.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from foundation.reasons import Reason
from policies.cache import DecisionCache
from policies.cached import CachedEngine
from policies.model import Answer
from policies.opa_server import MAX_ANSWER_BYTES, OpaServerEngine
from policies.settings import CacheSettings, PolicySettings, ServerSettings
from tests.fakes.clock import ManualClock
from tests.support.engines import compiled, small, wasm
from tests.support.opa import OpaProcess
from tests.support.workspaces import query

ALLOWED = query(route="r", path=("b", "c"), roles=("agent",))
PERMIT = {"allow": True, "reasons": ["granted"]}
Speak = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def http(
    body: bytes, *, status: str = "200 OK", kind: str = "application/json", more: str = "", short: int = 0
) -> bytes:
    """A response that says it is `short` bytes shorter than it is."""
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {kind}", f"Content-Length: {len(body) - short}"]
    return "\r\n".join([*lines, more, ""]).encode("latin-1") + body


def result(answer: object) -> bytes:
    return json.dumps({"result": {"mark": True, "answer": answer}}).encode()


GOOD = result(PERMIT)
UTF16 = http(GOOD.decode().encode("utf-16"), kind="application/json; charset=utf-16")
GZIPPED = http(gzip.compress(b" " * (64 << 20) + GOOD), more="Content-Encoding: gzip\r\n")
NO_END = http(GOOD.replace(b'["granted"]', b'["granted"], "deadline": NaN'))
NEVER = http(GOOD.replace(b'["granted"]', b'["granted"], "deadline": 1' + b"0" * 400))
CHUNKED = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
GARBLED: dict[str, tuple[bytes, Reason]] = {
    "cut in the head": (b"HTTP/1.1 200 OK\r\nConte", Reason.ENGINE_UNREACHABLE),
    "cut in the body": (http(GOOD, short=-10), Reason.ENGINE_ANSWER_INVALID),
    "cut in a chunk": (CHUNKED.encode() + b"ff\r\n" + GOOD, Reason.ENGINE_ANSWER_INVALID),
    "bytes left over": (http(GOOD, short=3), Reason.ENGINE_FAILED),
    "nothing at all": (b"", Reason.ENGINE_UNREACHABLE),
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01" + b"\0" * 60 + b"\r\n\r\n", Reason.ENGINE_FAILED),
    "no JSON": (http(b"allow"), Reason.ENGINE_ANSWER_INVALID),
    "empty": (http(b""), Reason.ENGINE_ANSWER_INVALID),
    "no UTF-8": (http(GOOD.replace(b"granted", b"gr\xffnted")), Reason.ENGINE_ANSWER_INVALID),
    "another charset": (UTF16, Reason.ENGINE_ANSWER_INVALID),
    "no charset": (http(GOOD, kind="application/json; charset=nonsense"), Reason.ENGINE_ANSWER_INVALID),
    "another type": (http(GOOD, kind="text/html"), Reason.ENGINE_ANSWER_INVALID),
    "a list": (http(b"[]"), Reason.ENGINE_ANSWER_INVALID),
    "a boolean result": (http(b'{"result": true}'), Reason.ENGINE_ANSWER_INVALID),
    "no result": (http(b"{}"), Reason.ENGINE_FAILED),
    "no mark": (http(json.dumps({"result": {"answer": PERMIT}}).encode()), Reason.ENGINE_FAILED),
    "no answer": (http(b'{"result": {"mark": true}}'), Reason.ENGINE_ANSWER_INVALID),
    "true": (http(result(True)), Reason.ENGINE_ANSWER_INVALID),
    "allow is 1": (http(result({**PERMIT, "allow": 1})), Reason.ENGINE_ANSWER_INVALID),
    "allow is a text": (http(result({**PERMIT, "allow": "true"})), Reason.ENGINE_ANSWER_INVALID),
    "allow is a list": (http(result({**PERMIT, "allow": [True]})), Reason.ENGINE_ANSWER_INVALID),
    "no reasons": (http(result({"allow": True})), Reason.ENGINE_ANSWER_INVALID),
    "a denial's reason": (http(result({"allow": True, "reasons": ["no_grant"]})), Reason.ENGINE_ANSWER_INVALID),
    "an unknown reason": (http(result({"allow": True, "reasons": ["ok"]})), Reason.ENGINE_ANSWER_INVALID),
    "more than an answer": (http(result({**PERMIT, "admin": True})), Reason.ENGINE_ANSWER_INVALID),
    "an end that is none": (http(result({**PERMIT, "deadline": "tomorrow"})), Reason.ENGINE_ANSWER_INVALID),
    "an end that is no number": (NO_END, Reason.ENGINE_ANSWER_INVALID),
    "an end beyond all numbers": (NEVER, Reason.ENGINE_ANSWER_INVALID),
    "nested deep": (http(b'{"result":' + b"[" * 200_000), Reason.ENGINE_ANSWER_INVALID),
    "too large": (http(b" " * MAX_ANSWER_BYTES + GOOD), Reason.ENGINE_ANSWER_INVALID),
    "a gzip bomb": (GZIPPED, Reason.ENGINE_ANSWER_INVALID),
    "500 with a permit": (http(GOOD, status="500 Oops"), Reason.ENGINE_FAILED),
    "404 with a permit": (http(GOOD, status="404 Not Found"), Reason.ENGINE_FAILED),
    "302 to a permit": (http(b"", status="302 Found", more="Location: /permit\r\n"), Reason.ENGINE_ANSWER_INVALID),
    "307 to a permit": (http(b"", status="307 Temporary", more="Location: /permit\r\n"), Reason.ENGINE_ANSWER_INVALID),
    "a header that is no UTF-8": (http(GOOD, kind="application/json\xff"), Reason.ENGINE_ANSWER_INVALID),
}  # fmt: skip


@asynccontextmanager
async def speaking(speak: Speak) -> AsyncIterator[OpaServerEngine]:
    """An engine whose server says what `speak` writes. At `/permit` it permits: nobody must be led there."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await speak(reader, writer)
            await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    settings = ServerSettings(port=server.sockets[0].getsockname()[1])
    engine = OpaServerEngine(small(), PolicySettings(decision_timeout=5.0, server=settings), ManualClock())
    await engine._client._init_session()
    engine._root = "root"
    try:
        yield engine
    finally:
        await engine._client.close_connection()
        server.close()


def saying(words: bytes) -> Speak:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n")
        await reader.readuntil(b"\r\n\r\n")
        writer.write(http(GOOD) if b"/permit " in request else words)

    return speak


async def test_the_server_of_these_cases_can_permit() -> None:
    async with speaking(saying(http(GOOD))) as engine:
        assert (await engine.decide(ALLOWED)).allow


@pytest.mark.parametrize(("words", "reason"), GARBLED.values(), ids=GARBLED)
async def test_garbled_is_denied_and_not_kept(words: bytes, reason: Reason) -> None:
    async with speaking(saying(words)) as engine:
        cached = CachedEngine(engine, small(), DecisionCache(CacheSettings()))
        assert await cached.decide(ALLOWED) == Answer(False, (reason,))
        assert cached.peek(ALLOWED) is None


@pytest.mark.parametrize("begin", [b"", b"HTTP/1.1 200 OK\r\n", http(GOOD, short=-1)])
async def test_a_server_that_hangs_is_denied_in_time(begin: bytes) -> None:
    gone = asyncio.Event()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(begin)
        await gone.wait()

    async with speaking(hang) as engine:
        engine._timeout = 0.1
        async with asyncio.timeout(20):
            assert (await engine.decide(ALLOWED)).reasons == (Reason.ENGINE_TIMEOUT,)
        gone.set()


async def test_a_server_that_drips_is_denied_in_time() -> None:
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for byte in http(GOOD + b" " * 10_000):
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0.01)

    async with speaking(drip) as engine:
        engine._timeout = 0.2
        async with asyncio.timeout(20):
            assert (await engine.decide(ALLOWED)).reasons == (Reason.ENGINE_TIMEOUT,)


async def test_a_refused_connection_is_asked_once() -> None:
    """The client would try again, with waits that outlast a decision."""
    asked = 0

    async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(http(b"{}", status="502 Bad Gateway"))

    async with speaking(count) as engine:
        assert (await engine.decide(ALLOWED)).reasons == (Reason.ENGINE_FAILED,)
    assert asked == 1


async def test_a_real_server_killed_and_stopped(tmp_path: Path) -> None:
    process = OpaProcess(tmp_path)
    process.start()
    settings = PolicySettings(decision_timeout=1.0, server=process.settings)
    engine = await OpaServerEngine.load(small(), settings, ManualClock())
    try:
        assert (await engine.decide(ALLOWED)).allow
        assert process._process is not None
        os.kill(process._process.pid, signal.SIGSTOP)
        while Path(f"/proc/{process._process.pid}/stat").read_text().split()[2] != "T":
            await asyncio.sleep(0)
        assert (await engine.decide(ALLOWED)).reasons == (Reason.ENGINE_TIMEOUT,)
        os.kill(process._process.pid, signal.SIGCONT)
        assert (await engine.decide(ALLOWED)).allow
        process.stop()
        assert (await engine.decide(ALLOWED)).reasons == (Reason.ENGINE_UNREACHABLE,)
    finally:
        await engine.close()
        process.stop()


@pytest.mark.parametrize(
    "decision", ["true", '"allow"', '{"allow": 1, "reasons": ["granted"]}', "1", "[]", '{"allow": true}']
)
def test_wasm_that_garbles_is_denied(decision: str) -> None:
    with wasm(compiled(f"decision := {decision}")) as engine:
        assert engine.decide_now(ALLOWED) == Answer(False, (Reason.ENGINE_ANSWER_INVALID,))
