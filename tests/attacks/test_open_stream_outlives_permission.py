"""Row "open stream outlives permission" (envoy#14504, pomerium#1279, tailscale#859, consul#6454): a stream is cut when
what allowed it ends: policy, grant (deleted or expired), posture, revocation, certificate, segment. An idle connection
of a revoked identity too. The cut is an abort: nothing says that the stream had ended well."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from foundation.identity import (
    AttestationClass,
    Heartbeat,
    IdentityChanged,
    Posture,
    PostureChanged,
    Renewal,
    Revocation,
    SnapshotNumbers,
    State,
    Verdict,
)
from foundation.reasons import Reason
from policies.model import Answer
from tests.fakes.trust import ALLOW, DENY, FakeEngine, record, spiffe
from tests.support.gateway import DataPlane, RawClient, RawUpstream, gateway_to, request_bytes

FIRST = b"3\r\none\r\n"


class Watched(RawUpstream):
    """Streams for ever; `ended` is set when its connection ends."""

    def __init__(self) -> None:
        super().__init__(self.watch)
        self.ended = asyncio.Event()

    async def watch(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self.request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + FIRST)
        await reader.read()
        self.ended.set()


@asynccontextmanager
async def watching(tmp_path: Path, method: str = "GET") -> AsyncIterator[tuple[DataPlane, RawClient, Watched]]:
    upstream = Watched()
    async with gateway_to(upstream, tmp_path) as plane:
        plane.know("edge-2")
        registry = asyncio.create_task(plane.registry.run())
        client = await plane.connect()
        client.send(request_bytes(method, "/watch"))
        assert (await client.head())[0] == 200
        assert await client.reader.readexactly(len(FIRST)) == FIRST
        yield plane, client, upstream
        registry.cancel()
        await asyncio.gather(registry, return_exceptions=True)


async def assert_cut(plane: DataPlane, client: RawClient, upstream: Watched) -> None:
    async with asyncio.timeout(15):
        assert await client.ended() == b""  # no last chunk
        await upstream.ended.wait()
    assert plane.registry.open_count == 0
    assert plane.metrics.answers[-1][1] in {Reason.CUT_BY_REVOCATION, Reason.CUT_BY_CHANGE, Reason.CUT_BY_DEADLINE}


def revoke_identity(plane: DataPlane) -> None:
    plane.store.apply(Revocation(1, spiffe(), "", "key_compromise", 1.0))


def revoke_serial(plane: DataPlane) -> None:
    (connection,) = plane.listener.connections
    plane.store.apply(Revocation(1, spiffe(), connection.peer.serial, "key_compromise", 1.0))


def fail_posture(plane: DataPlane) -> None:
    failed = Posture(AttestationClass.HARDWARE, Verdict.FAILED)
    plane.store.apply(PostureChanged(2, spiffe(), failed, plane.clock.now() + 1000))


def quarantine(plane: DataPlane) -> None:
    plane.store.apply(IdentityChanged(2, record(state=State.QUARANTINED, epoch=2)))


def move_segment(plane: DataPlane) -> None:
    plane.engine.answer = lambda query: ALLOW if query.identity.segment == "edge" else DENY
    plane.store.apply(IdentityChanged(2, replace(record(epoch=2), segment="lobby")))


def publish_without_the_grant(plane: DataPlane) -> None:
    plane.publish(engine=FakeEngine(lambda query: DENY, cached=True), revision=2)


def lose_the_revision(plane: DataPlane) -> None:
    plane.publish(engine=FakeEngine(lambda query: Answer(False, (Reason.ENGINE_FAILED,))), revision=2)


CHANGES = [
    revoke_identity,
    revoke_serial,
    fail_posture,
    quarantine,
    move_segment,
    publish_without_the_grant,
    lose_the_revision,
]


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("change", CHANGES)
async def test_a_change_cuts_the_stream(tmp_path: Path, change: Callable[[DataPlane], None], method: str) -> None:
    async with watching(tmp_path, method) as (plane, client, upstream):
        change(plane)
        await assert_cut(plane, client, upstream)


@pytest.mark.parametrize("ends", ["certificate", "attestation", "grant"])
async def test_a_deadline_cuts_the_stream(tmp_path: Path, ends: str) -> None:
    upstream = Watched()
    async with gateway_to(upstream, tmp_path) as plane:
        now = plane.clock.now()
        if ends == "grant":
            plane.engine.answer = lambda query: replace(ALLOW, deadline=now + 3600)
        if ends == "attestation":
            plane.store.apply(PostureChanged(1, spiffe(), plane.store.current.postures[spiffe()], now + 3600))
        registry = asyncio.create_task(plane.registry.run())
        client = await plane.connect()
        client.send(request_bytes("GET", "/watch"))
        await client.head()
        assert await client.reader.readexactly(len(FIRST)) == FIRST
        await plane.advance(1)
        assert plane.registry.open_count == 1
        plane.clock.set_wall(now + (3600 if ends != "certificate" else 86_400) + 1)
        await plane.advance(1)
        await assert_cut(plane, client, upstream)
        registry.cancel()
        await asyncio.gather(registry, return_exceptions=True)


def renew(plane: DataPlane, until: float) -> None:
    """The authority says that this node's TPM renewed the certificate by which its connection came."""
    (connection,) = plane.listener.connections
    posture, attested = plane.store.current.postures[spiffe()], plane.clock.now() + 1e6
    renewal = Renewal(connection.peer.serial, "0f", until)
    plane.store.apply(PostureChanged(1, spiffe(), posture, attested, renewal=renewal))


@pytest.mark.parametrize("ends", ["renewed certificate", "newest revoked", "attestation", "not renewed"])
async def test_a_renewal_carries_a_stream_and_no_further(tmp_path: Path, ends: str) -> None:
    """teleport#18544: a certificate's end must not end what may go on. A new request has to come by the new one."""
    async with watching(tmp_path) as (plane, client, upstream):
        (connection,) = plane.listener.connections
        not_after = connection.peer.not_after
        plane.store.apply(Heartbeat(not_after + 20_000, SnapshotNumbers(1, 0, 0, 0)))
        posture = plane.store.current.postures[spiffe()]
        plane.store.apply(PostureChanged(1, spiffe(), posture, not_after + 10_000))
        await plane.advance(0.5)
        if ends != "not renewed":
            renew(plane, not_after + 3600)
        plane.clock.set_wall(not_after + 1)
        await plane.advance(1)
        if ends != "not renewed":
            assert plane.registry.open_count == 1
            assert not upstream.ended.is_set()
        if ends == "newest revoked":
            plane.store.apply(Revocation(1, spiffe(), "0f", "key_compromise", not_after + 1))
        elif ends == "attestation":
            plane.store.apply(PostureChanged(1, spiffe(), posture, not_after + 2))
            plane.store.apply(IdentityChanged(2, record(epoch=2)))  # whatever makes it look
            plane.clock.set_wall(not_after + 3)
        elif ends == "renewed certificate":
            plane.clock.set_wall(not_after + 3601)
        await plane.advance(1)
        await assert_cut(plane, client, upstream)


async def test_a_new_request_by_an_old_certificate_is_refused_whatever_was_renewed(tmp_path: Path) -> None:
    async with gateway_to(RawUpstream(), tmp_path) as plane:
        client = await plane.connect()
        assert (await client.get()).status == 200
        (connection,) = plane.listener.connections
        not_after = connection.peer.not_after
        renew(plane, not_after + 3600)
        plane.clock.set_wall(not_after + 1)
        assert (await client.get()).reason == "certificate_expired"


async def test_idle_connections_of_a_revoked_identity_end(tmp_path: Path) -> None:
    async with gateway_to(RawUpstream(), tmp_path) as plane:
        plane.know("edge-2")
        idle, other = await plane.connect(), await plane.connect(plane.pair("edge-2"))
        assert (await idle.get()).status == (await other.get()).status == 200
        revoke_identity(plane)
        assert await idle.ended() == b""
        assert (await other.get()).status == 200


async def test_a_stream_whose_permission_still_stands_goes_on(tmp_path: Path) -> None:
    async with watching(tmp_path) as (plane, _, upstream):
        plane.publish(engine=FakeEngine(lambda query: ALLOW), revision=2)
        plane.store.apply(Revocation(1, spiffe("edge-2"), "", "key_compromise", 1.0))
        await plane.advance(1)
        assert plane.registry.open_count == 1
        assert not upstream.ended.is_set()
