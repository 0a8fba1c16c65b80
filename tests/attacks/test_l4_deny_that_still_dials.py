"""Row "L4 deny that still dials" (envoy#9023): what is denied sends its target not even a SYN, and what is cut while it
dials is dialled no further."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from foundation.identity import Revocation, SnapshotNumbers
from gateway.proxy.route import RouteTable
from gateway.proxy.upstream import Upstreams, UpstreamSettings
from gateway.snapshot import PolicyPart
from gateway.upstreams.pool import LivePool
from gateway.upstreams.probe import Probe, probes_of
from policies.model import Denial
from policies.upstreams import Address, HealthCheck, Pool
from tests.fakes.clock import ManualClock
from tests.fakes.trust import DENY, FakeEngine, spiffe
from tests.support.gateway import DataPlane, RawUpstream, gateway_to, request_bytes, route


@pytest.mark.parametrize("cached", [True, False])
async def test_a_denied_request_reaches_no_target(tmp_path: Path, cached: bool) -> None:
    upstream = RawUpstream()
    async with gateway_to(upstream, tmp_path) as plane:
        plane.engine.answer, plane.engine.cached = (lambda query: DENY), cached
        client = await plane.connect()
        for method in ("GET", "POST", "DELETE"):
            assert (await client.ask(request_bytes(method, "/x"))).status == 403
        plane.engine.answer = lambda query: replace(DENY, allow=False)
        assert (await client.get()).status == 403
        assert not any(each.is_used for each in plane.upstreams._pools["api"].endpoints.values())
    assert upstream.dials == 0


async def test_a_denied_target_sees_no_syn(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as target:
        target.setblocking(False)
        plane = DataPlane(tmp_path, (route(Address(*target.getsockname()[:2])),))
        plane.engine.answer = lambda query: DENY
        async with plane.running():
            client = await plane.connect()
            assert (await client.get()).status == 403
            with pytest.raises(BlockingIOError):
                target.accept()


async def test_a_cut_ends_the_dial(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        address = Address(*full.getsockname()[:2])
        fillers = [socket.socket() for _ in range(8)]
        for filler in fillers:  # the queue is full: further SYNs are dropped, and a dial hangs
            filler.setblocking(False)
            filler.connect_ex(address[:2] if isinstance(address, tuple) else (address.host, address.port))
        plane = DataPlane(tmp_path, (route(address, connect_timeout=60.0),))
        async with plane.running():
            client = await plane.connect()
            client.send(request_bytes("GET", "/x"))
            await plane.until(lambda: bool(plane.upstreams._dials))
            (dial,) = plane.upstreams._dials
            plane.store.apply(Revocation(1, spiffe(), "", "key_compromise", 1.0))
            assert await client.ended() == b""
            async with asyncio.timeout(10):
                await asyncio.wait({dial})
            assert dial.cancelled()
            assert not plane.upstreams._dials
        for filler in fillers:
            filler.close()


async def test_the_dialler_takes_nothing_but_a_permit() -> None:
    upstreams = Upstreams(UpstreamSettings(), ManualClock())
    denial = Denial("d-1", None, DENY.reasons, SnapshotNumbers(1, 0, 0, 0))
    with pytest.raises(TypeError):
        upstreams.open(denial, route(Address("127.0.0.1", 1)), None)  # type: ignore[arg-type]


async def test_a_health_check_is_dialled_by_a_probe_of_the_enforced_revision_alone() -> None:
    check = HealthCheck("/healthz")
    pool = Pool("api", (Address("127.0.0.1", 1),), health=check)
    with pytest.raises(TypeError):
        Probe(object(), pool, check)
    upstreams = Upstreams(UpstreamSettings(), ManualClock())
    live = LivePool(pool, UpstreamSettings(), ManualClock())
    (endpoint,) = live.endpoints.values()
    with pytest.raises(TypeError):
        await upstreams._connect(endpoint, None, pool, 1.0, None)  # type: ignore[arg-type]
    routes = RouteTable((route(Address("127.0.0.1", 1), pool={"health": check}),))
    (probe,) = probes_of(PolicyPart(1, "", FakeEngine(), routes)).values()
    assert probe.request("127.0.0.1") == (
        b"GET /healthz HTTP/1.1\r\nhost: 127.0.0.1\r\nuser-agent: sallyport-health\r\nconnection: close\r\n\r\n"
    )
