"""Pools at work: which address answers, what is tried again, what takes an address out and brings it back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from foundation.identity import Revocation
from foundation.reasons import Reason
from gateway.proxy.upstream import UpstreamSettings
from policies.routes import Route
from policies.upstreams import Breaker, HealthCheck, Outlier, Retries
from tests.fakes.trust import spiffe
from tests.support.gateway import DataPlane, RawUpstream, request_bytes, route
from tests.support.pools import NO, OK, Named, body, client_of, closed_address, count, hang_up, plane_over, states

# --- balance ------------------------------------------------------------------------------------------


async def test_the_address_with_less_to_do_takes_the_next_request(tmp_path: Path) -> None:
    a, b = Named("a"), Named("b")
    async with plane_over(tmp_path, a, b) as plane:
        first, second = await plane.connect(), await plane.connect()
        own = await body(first)
        assert await body(second) == own  # one caller keeps to its own while it is as good
        busy, other = (a, b"b") if own == b"a" else (b, b"a")
        busy.answering.clear()
        first.send(request_bytes("GET", "/slow"))
        await plane.until(lambda: len(busy.seen) == 3)
        assert await body(second) == other
        busy.answering.set()
        assert (await first.answer()).body == own


async def test_one_that_comes_back_takes_its_share_slowly(tmp_path: Path) -> None:
    a, b = Named("a"), Named("b")
    pool = {"slow_start": 20.0, "outlier": Outlier(consecutive_5xx=1, ejection=10.0)}
    async with plane_over(tmp_path, a, b, pool=pool) as plane:
        client = await plane.connect()
        own = a if await body(client) == b"a" else b
        own.status = 500
        assert (await client.get()).status == 500
        assert sorted(states(plane)) == ["ejected", "in_service"]
        own.status = 200
        await plane.advance(10.5)
        assert states(plane) == ["in_service", "in_service"]
        live = plane.upstreams._pools["api"]
        assert sorted(each.weight for each in live.endpoints.values()) == [0.1, 1.0]
        assert await body(client) != own.name  # it is as idle, and not as heavy
        await plane.advance(20)
        assert await body(client) == own.name


# --- failures, and what is tried again ----------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_what_was_not_written_is_tried_elsewhere(tmp_path: Path, method: str) -> None:
    up = Named("up")
    async with plane_over(tmp_path, await closed_address(), up) as plane:
        for number in (0, 1):
            client = await client_of(plane, number, 2)
            answered = await client.ask(request_bytes(method, "/x", body=b"b" if method == "POST" else b""))
            assert (answered.status, answered.body) == (200, b"up")


async def test_a_read_without_an_answer_is_tried_elsewhere(tmp_path: Path) -> None:
    up, down = Named("up"), RawUpstream(hang_up)
    async with plane_over(tmp_path, down, up) as plane:
        for number in (0, 1):
            assert (await (await client_of(plane, number, 2)).get()).status == 200
        assert down.dials == 1
        assert count(plane, "retries") == down.dials


async def test_a_write_without_an_answer_is_never_sent_again(tmp_path: Path) -> None:
    a, b = RawUpstream(hang_up), RawUpstream(hang_up)
    async with plane_over(tmp_path, a, b) as plane:
        for method, sent in (("POST", b"x"), ("DELETE", b""), ("PUT", b"x")):
            client = await plane.connect()
            answered = await client.ask(request_bytes(method, "/x", body=sent))
            assert answered.reason == Reason.UPSTREAM_UNREACHABLE.code
        assert a.dials + b.dials == 3
        assert count(plane, "retries") == 0


async def test_tries_are_counted(tmp_path: Path) -> None:
    downs = [RawUpstream(hang_up) for _ in range(5)]
    async with plane_over(tmp_path, *downs, pool={"retries": Retries(tries=2)}) as plane:
        assert (await (await plane.connect()).get()).status == 502
        assert sorted(each.dials for each in downs) == [0, 0, 1, 1, 1]
        assert plane.upstreams._pools["api"].retrying == 0


async def test_repeats_stay_within_the_budget(tmp_path: Path) -> None:
    up, down = Named("up"), RawUpstream(hang_up)
    pool = {"retries": Retries(least=0, percent=0)}
    async with plane_over(tmp_path, down, up, pool=pool) as plane:
        statuses = set()
        for number in (0, 1):
            statuses.add((await (await client_of(plane, number, 2)).get()).status)
        assert statuses == {200, 502}
        assert (count(plane, "retries"), count(plane, "retries_refused")) == (0, down.dials)


@pytest.mark.parametrize(("asked", "status"), [(True, 200), (False, 503)])
async def test_503_is_an_answer_unless_the_route_says_otherwise(tmp_path: Path, asked: bool, status: int) -> None:
    up, down = RawUpstream(OK), RawUpstream(NO)
    async with plane_over(tmp_path, down, up, retry_503=asked) as plane:
        statuses = set()
        for number in (0, 1):
            client = await client_of(plane, number, 2)
            statuses.add((await client.get()).status)
            assert (await client.get()).status in {200, status}  # the connection goes on
        assert statuses == {200, status}
        assert bool(count(plane, "retries")) is asked


async def test_503_to_a_write_and_of_a_sole_address_is_passed_on(tmp_path: Path) -> None:
    async with plane_over(tmp_path, RawUpstream(NO), retry_503=True) as plane:
        assert (await (await plane.connect()).get()).status == 503
    a, b = RawUpstream(NO), RawUpstream(NO)
    async with plane_over(tmp_path, a, b, retry_503=True) as plane:
        client = await plane.connect()
        assert (await client.ask(request_bytes("POST", "/x", body=b"x"))).status == 503
        assert a.dials + b.dials == 1
        assert (await client.get()).status == 503


# --- outliers -----------------------------------------------------------------------------------------


async def test_an_address_that_fails_is_ejected_and_comes_back(tmp_path: Path) -> None:
    up, down = Named("up"), await closed_address()
    pool = {"outlier": Outlier(consecutive_failures=2, ejection=30.0)}
    async with plane_over(tmp_path, down, up, pool=pool) as plane:
        clients = [await client_of(plane, number, 2) for number in (0, 1)]
        for client in 2 * clients:
            assert await body(client) == b"up"
        assert states(plane) == ["ejected", "in_service"]
        failures = count(plane, "dial_failures")
        assert failures == 2
        for client in clients:
            assert await body(client) == b"up"
        assert count(plane, "dial_failures") == failures
        await plane.advance(31)
        assert states(plane) == ["in_service", "in_service"]


async def test_no_more_than_a_share_is_ejected(tmp_path: Path) -> None:
    named = [Named(str(number)) for number in range(4)]
    pool = {"outlier": Outlier(consecutive_5xx=1, share=50)}
    async with plane_over(tmp_path, *named, pool=pool) as plane:
        for each in named:
            each.status = 500
        for number in 3 * (0, 1, 2, 3):
            assert (await (await client_of(plane, number, 4)).get()).status == 500
        assert sorted(states(plane)) == ["ejected", "ejected", "in_service", "in_service"]


async def test_what_callers_provoke_ejects_nobody_by_default(tmp_path: Path) -> None:
    named = [Named(str(number)) for number in range(2)]
    async with plane_over(tmp_path, *named) as plane:
        client = await plane.connect()
        for each in named:
            each.status = 500
        for _ in range(20):
            assert (await client.get()).status == 500
        assert states(plane) == ["in_service", "in_service"]


# --- health checks ------------------------------------------------------------------------------------


async def test_active_checks_take_an_address_out_and_bring_it_back(tmp_path: Path) -> None:
    a, b = Named("a"), Named("b")
    check = HealthCheck("/healthz", "store.internal", interval=1.0, healthy=2, unhealthy=2)
    async with plane_over(tmp_path, a, b, pool={"health": check}) as plane:

        async def checked(times: int) -> None:
            for _ in range(times):
                seen = len(a.seen) + len(b.seen)
                await plane.advance(1.25)
                await plane.until(lambda: len(a.seen) + len(b.seen) >= seen + 2)  # noqa: B023  # awaited at once
                await plane.until(lambda: not plane.upstreams._probing)

        await checked(1)
        assert a.seen[0].startswith(b"GET /healthz HTTP/1.1\r\nhost: store.internal\r\n")
        assert b"x-sallyport" not in a.seen[0]
        a.status = 500
        await checked(1)
        assert states(plane) == ["in_service", "in_service"]
        await checked(1)
        assert states(plane) == ["unhealthy", "in_service"]
        assert not any(each.shown.answers for each in plane.upstreams._pools["api"].endpoints.values())
        for number in (0, 1):
            assert await body(await client_of(plane, number, 2)) == b"b"
        a.status = 200
        await checked(2)
        assert states(plane) == ["in_service", "in_service"]


async def test_a_connection_may_be_check_enough(tmp_path: Path) -> None:
    up, down = RawUpstream(), await closed_address()
    async with plane_over(tmp_path, up, down, pool={"health": HealthCheck(interval=1.0)}) as plane:
        await plane.advance(0.5)
        await plane.until(lambda: states(plane) == ["in_service", "unhealthy"])
        assert up.seen == []


async def test_with_too_few_in_service_all_are_used(tmp_path: Path) -> None:
    upstream = Named("sick")
    check = {"health": HealthCheck("/healthz", interval=1.0, unhealthy=1)}
    upstream.status = 500
    async with plane_over(tmp_path, upstream, pool=check) as plane:
        await plane.advance(0.5)
        await plane.until(lambda: states(plane) == ["unhealthy"])
        assert (await (await plane.connect()).get()).status == 500
        assert count(plane, "panicking") is True
    async with plane_over(tmp_path, upstream, pool=check | {"panic": 0}) as plane:
        await plane.advance(0.5)
        await plane.until(lambda: states(plane) == ["unhealthy"])
        answered = await (await plane.connect()).get()
        assert (answered.status, answered.reason) == (503, Reason.UPSTREAM_UNHEALTHY.code)


# --- the breaker --------------------------------------------------------------------------------------


async def test_the_breaker_refuses_at_once_what_is_too_much(tmp_path: Path) -> None:
    slow = Named("slow")
    slow.answering.clear()
    async with plane_over(tmp_path, slow, pool={"breaker": Breaker(requests=2)}) as plane:
        clients = [await plane.connect() for _ in range(3)]
        for client in clients[:2]:
            client.send(request_bytes("GET", "/x"))
        await plane.until(lambda: len(slow.seen) == 2)
        answered = await clients[2].get()
        assert (answered.status, answered.reason) == (503, Reason.UPSTREAM_OVERLOADED.code)
        slow.answering.set()
        for client in clients[:2]:
            assert (await client.answer()).status == 200
        assert (await clients[2].get()).status == 200
        assert count(plane, "refused") == 1


async def test_connections_to_an_address_are_bounded_by_its_pool(tmp_path: Path) -> None:
    slow = Named("slow")
    slow.answering.clear()
    async with plane_over(tmp_path, slow, pool={"breaker": Breaker(connections=1)}) as plane:
        first, second = await plane.connect(), await plane.connect()
        first.send(request_bytes("GET", "/x"))
        await plane.until(lambda: len(slow.seen) == 1)
        assert (await second.get()).reason == Reason.OVERLOADED.code
        slow.answering.set()
        assert (await first.answer()).status == 200
        assert (await second.get()).status == 200
        assert slow.dials == 1


# --- connections and whose they are -------------------------------------------------------------------


@pytest.mark.parametrize(("per_identity", "dials"), [(True, 2), (False, 1)])
async def test_an_upstream_that_authenticates_connections_sees_one_identity_on_each(
    tmp_path: Path, per_identity: bool, dials: int
) -> None:
    upstream = RawUpstream()
    async with plane_over(tmp_path, upstream, pool={"per_identity": per_identity}) as plane:
        plane.know("edge-2")
        one, two = await plane.connect(), await plane.connect(plane.pair("edge-2"))
        for _ in range(3):
            for client in (one, two):
                assert (await client.get()).status == 200
        assert upstream.dials == dials


async def test_no_identity_keeps_another_from_an_idle_connection(tmp_path: Path) -> None:
    upstream, settings = RawUpstream(), UpstreamSettings(max_idle=2)
    async with plane_over(tmp_path, upstream, pool={"per_identity": True}, settings=settings) as plane:
        (endpoint,) = plane.upstreams._pools["api"].endpoints.values()
        for number in range(5):
            plane.know(f"edge-{number}")
            client = await plane.connect(plane.pair(f"edge-{number}"))
            assert (await client.get()).status == 200
            assert (await client.get()).status == 200
            await plane.until(lambda: len(endpoint.connections) <= 2)
        assert upstream.dials == 5  # each identity's second request found its own
        await plane.advance(0.25)
        assert len(endpoint._idle) <= 2  # nothing is kept of those who have no connection


@pytest.mark.parametrize("per_identity", [True, False])
async def test_what_a_revoked_identity_authenticated_ends(tmp_path: Path, per_identity: bool) -> None:
    async with plane_over(tmp_path, RawUpstream(), pool={"per_identity": per_identity}) as plane:
        plane.know("edge-2")
        (endpoint,) = plane.upstreams._pools["api"].endpoints.values()
        for name in ("edge-1", "edge-2"):
            assert (await (await plane.connect(plane.pair(name))).get()).status == 200
        assert len(endpoint.connections) == 1 + per_identity
        plane.store.apply(Revocation(1, spiffe("edge-1"), "", "key_compromise", 1.0))
        await plane.until(lambda: len(endpoint.connections) == 1)


async def test_an_old_connection_is_not_lent_again(tmp_path: Path) -> None:
    upstream = RawUpstream()
    async with plane_over(tmp_path, upstream, settings=UpstreamSettings(max_age=60.0, idle_timeout=1e6)) as plane:
        client = await plane.connect()
        assert (await client.get()).status == 200
        plane.clock.advance(50)
        assert (await client.get()).status == 200
        plane.clock.advance(20)
        assert (await client.get()).status == 200  # it is given back too old
        assert (await client.get()).status == 200
        assert upstream.dials == 2


# --- a new revision -----------------------------------------------------------------------------------


@asynccontextmanager
async def deciding_again(plane: DataPlane) -> AsyncIterator[None]:
    registry = asyncio.create_task(plane.registry.run())
    try:
        yield
    finally:
        registry.cancel()
        await asyncio.gather(registry, return_exceptions=True)


def republish(plane: DataPlane, revised: Route, revision: int = 2) -> None:
    plane.routes = (revised,)
    plane.publish(revision=revision)


async def test_what_is_open_at_an_address_that_policy_took_out_ends(tmp_path: Path) -> None:
    async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        await reader.read()

    async with RawUpstream(stream).running() as a, RawUpstream(stream).running() as b:
        plane = DataPlane(tmp_path, (route(a, "api", b),))
        async with plane.running(), deciding_again(plane):
            clients = []
            for number in (0, 1, 0, 1, 0, 1):
                client = await client_of(plane, number, 2)
                client.send(request_bytes("GET", "/watch"))
                assert (await client.head())[0] == 200
                assert await anext(client.chunks()) == b"a"
                clients.append(client)
            live = plane.upstreams._pools["api"]
            at_a = live.endpoints[a].active
            assert 0 < at_a < 6
            republish(plane, route(b, "api"))
            await plane.until(lambda: plane.registry.open_count == 6 - at_a)
            assert plane.upstreams._pools["api"].endpoints[b].active == 6 - at_a
            assert {reason for _, reason, _ in plane.metrics.answers} == {Reason.CUT_BY_CHANGE}
            republish(plane, replace(route(b, "other"), prefix=("x",)), 3)
            for client in clients:
                await client.ended()
            assert plane.registry.open_count == 0


async def test_a_pool_that_did_not_change_keeps_its_connections(tmp_path: Path) -> None:
    upstream = RawUpstream()
    async with plane_over(tmp_path, upstream) as plane:
        client = await plane.connect()
        assert (await client.get()).status == 200
        republish(plane, plane.routes[0])
        assert (await client.get()).status == 200
        assert upstream.dials == 1


async def test_new_proof_asks_for_new_connections(tmp_path: Path) -> None:
    upstream = RawUpstream()
    async with plane_over(tmp_path, upstream) as plane:
        client, before = await plane.connect(), plane.routes[0]
        assert (await client.get()).status == 200
        assert before.pool is not None
        republish(plane, replace(before, pool=replace(before.pool, per_identity=True)))
        assert (await client.get()).status == 200
        assert upstream.dials == 2


async def test_a_check_that_policy_drops_holds_nothing_against_an_address(tmp_path: Path) -> None:
    a, b = Named("a"), Named("b")
    a.status = 500
    check = HealthCheck("/healthz", interval=1.0)
    async with plane_over(tmp_path, a, b, pool={"health": check}) as plane:
        await plane.advance(0.5)
        await plane.until(lambda: states(plane) == ["unhealthy", "in_service"])
        before = plane.routes[0]
        assert before.pool is not None
        republish(plane, replace(before, pool=replace(before.pool, health=None)))
        assert states(plane) == ["in_service", "in_service"]
