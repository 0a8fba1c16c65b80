"""Attack class "replay, constant nonce" (CVE-2026-6420), at the Redis server that keeps what is under way: a session
that was over comes back with a restart from disk, and somebody reads or writes the server's memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from foundation.hotstate.redis import RedisHotState
from foundation.identifiers import Kind, SpiffeId
from pki.enrol.sessions import KEY_BYTES, Session, Sessions, new_nonce, new_secret
from tests.support.redis import RedisServer, redis_server

SECONDS = 60.0
KEY = bytes(KEY_BYTES)


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with redis_server() as started:
        yield started


@pytest.fixture
async def sessions(server: RedisServer) -> AsyncIterator[Sessions]:
    async with sessions_at(server) as opened:
        yield opened


@asynccontextmanager
async def sessions_at(server: RedisServer) -> AsyncIterator[Sessions]:
    """Those of one authority."""
    hot = RedisHotState(server.settings)
    yield Sessions(hot, SECONDS, KEY)
    await hot.close()


def begun(name: str = "edge-1") -> Session:
    identity = SpiffeId("fleet.example", Kind.NODE, name)
    return Session("enrol", b"what the node sent first", identity, bytes(32), new_nonce(), new_secret())


async def test_a_session_that_is_over_does_not_come_back_from_disk(server: RedisServer, sessions: Sessions) -> None:
    session = begun()
    session_id = await sessions.open(session)
    with server.raw() as raw:
        raw.save()
    assert await sessions.take(session_id, "enrol") == session
    server.kill()
    server.start()
    with server.raw() as raw:
        assert [key for key in raw.scan_iter() if key.endswith(session_id.hex().encode())]
    async with sessions_at(server) as after:
        assert await after.take(session_id, "enrol") is None
        assert await sessions.take(session_id, "enrol") is None


async def test_who_reads_the_server_s_memory_learns_nothing(server: RedisServer, sessions: Sessions) -> None:
    session = begun()
    await sessions.open(session)
    with server.raw() as raw:
        memory = b"".join(raw.get(key) or b"" for key in raw.scan_iter())
    assert memory
    for secret in (session.secret, session.secret.hex().encode(), session.nonce, session.nonce.hex().encode()):
        assert secret not in memory
    assert str(session.identity).encode() not in memory


async def test_who_writes_the_server_s_memory_begins_nothing(server: RedisServer, sessions: Sessions) -> None:
    one, other = await sessions.open(begun("edge-1")), await sessions.open(begun("edge-2"))
    forged = bytes(16)
    with server.raw() as raw:
        names = {key.rpartition(b"/")[2].decode(): key for key in raw.scan_iter()}
        held = raw.get(names[one.hex()])
        raw.set(names[other.hex()], held)  # another's session under this ID
        raw.set(names[one.hex()], held[:-1] + bytes([held[-1] ^ 1]))
        raw.set(names[one.hex()].replace(one.hex().encode(), forged.hex().encode()), b"=" + begun().encode())
    for session_id in (one, other, forged):
        assert await sessions.take(session_id, "enrol") is None
