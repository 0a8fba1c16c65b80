"""Pools that are names: what a resolver says, followed while requests go on."""

from __future__ import annotations

import asyncio
from pathlib import Path

from foundation.faults import Fault
from foundation.reasons import Reason
from gateway.upstreams.resolve import Found, Place
from policies.upstreams import Address, Discovery, Outlier, Retries
from tests.support.gateway import DataPlane, request_bytes, route
from tests.support.pools import Named, body, plane_over

# --- balance ------------------------------------------------------------------------------------------


class Names:
    """Implements `gateway.upstreams.resolve.Resolver` from what the test says."""

    def __init__(self) -> None:
        self.found: Found | Exception = Found({}, 1.0)
        self.asked = 0

    async def system(self, name: str) -> list[str]:
        return ["169.254.169.254"]

    async def look_up(self, pool: object) -> Found:
        self.asked += 1
        if isinstance(self.found, Exception):
            raise self.found
        return self.found

    def close(self) -> None:
        pass


async def test_a_pool_follows_its_name_and_keeps_what_it_knew(tmp_path: Path) -> None:
    a, b, names = Named("a"), Named("b"), Names()
    async with a.running() as at_a, b.running() as at_b:
        named = {"addresses": (), "discovery": Discovery.DNS, "dns": Address("store.internal", 1), "refresh": 20.0}
        plane = DataPlane(tmp_path, (route(at_a, "api", pool=named),))
        plane.upstreams._resolver = names
        async with plane.running():
            client = await plane.connect()
            answered = await client.get()
            assert (answered.status, answered.reason) == (503, Reason.UPSTREAM_UNHEALTHY.code)
            await plane.advance(1)
            names.found = Found({at_a: "store.internal"}, 10.0)
            await plane.advance(2)
            assert await body(client) == b"a"
            asked = names.asked
            await plane.advance(7)
            assert names.asked == asked  # the TTL holds
            names.found = Fault(Reason.UPSTREAM_UNREACHABLE)
            await plane.advance(3)
            assert names.asked > asked
            assert await body(client) == b"a"  # what was known stays
            names.found = Found({at_b: "store.internal"}, 1e9)
            await plane.advance(3)
            assert await body(client) == b"b"
            asked = names.asked
            await plane.advance(21)
            assert names.asked == asked + 1  # the refresh is the longest


async def test_of_a_service_the_next_rank_is_asked_when_none_of_the_first_is_in_service(tmp_path: Path) -> None:
    """RFC 2782: priority, and within one the weight."""
    first, second, names = Named("first"), Named("second"), Names()
    async with first.running() as at_first, second.running() as at_second:
        named = {"addresses": (), "discovery": Discovery.SRV, "dns": Address("_store._tcp.internal", 0)}
        ejecting = {"outlier": Outlier(consecutive_failures=1, share=100), "retries": Retries(tries=0)}
        plane = DataPlane(tmp_path, (route(at_first, "api", pool={**named, **ejecting, "panic": 0}),))
        plane.upstreams._resolver = names
        places = {at_first: Place(1, 1), at_second: Place(2, 1)}
        names.found = Found({at_first: "first.internal", at_second: "second.internal"}, 100.0, places)
        async with plane.running():
            client = await plane.connect()
            assert [await body(client) for _ in range(3)] == [b"first"] * 3
            live = plane.upstreams._pools["api"]
            live.endpoints[at_first].failed()
            assert [await body(client) for _ in range(3)] == [b"second"] * 3


async def test_the_first_requests_wait_until_the_name_is_known(tmp_path: Path) -> None:
    up, names, asked = Named("up"), Names(), asyncio.Event()

    async def look_up(pool: object) -> Found:
        names.asked += 1
        await asked.wait()
        return names.found  # type: ignore[return-value]

    async with up.running() as address:
        named = {"addresses": (), "discovery": Discovery.DNS, "dns": Address("store.internal", 1)}
        plane = DataPlane(tmp_path, (route(address, pool=named),))
        names.look_up = look_up  # type: ignore[method-assign]
        names.found = Found({address: "store.internal"}, 10.0)
        plane.upstreams._resolver = names
        async with plane.running():
            clients = [await plane.connect() for _ in range(3)]
            for client in clients:
                client.send(request_bytes("GET", "/x"))
            await plane.until(lambda: plane.registry.open_count == 3 and names.asked > 0)
            asked.set()
            assert [(await client.answer()).body for client in clients] == [b"up"] * 3
            assert names.asked == 1


async def test_a_name_that_leads_to_metadata_is_not_dialled(tmp_path: Path) -> None:
    async with plane_over(tmp_path, Address("store.internal", 80)) as plane:
        plane.upstreams._resolver = Names()
        answered = await (await plane.connect()).get()
        assert (answered.status, answered.reason) == (502, Reason.UPSTREAM_ADDRESS_REFUSED.code)
