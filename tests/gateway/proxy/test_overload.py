"""Overload: what is shed, in which order, and when it comes back; and that what is admitted is served."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.reasons import Reason
from gateway.proxy.overload import WINDOW, Overload, OverloadSettings, rooms, shed_level
from gateway.proxy.turns import Turns
from policies.model import Answer, Query
from policies.routes import Priority
from tests.fakes.clock import ManualClock
from tests.fakes.trust import DENY
from tests.support.driven import arrive, client_certificate
from tests.support.gateway import DataPlane, RawUpstream, request_bytes, route

_LAG = st.floats(0, 10)
FROM_LOW = (Priority.LOW, Priority.NORMAL, Priority.HIGH, Priority.CRITICAL)

# --- the judgement ------------------------------------------------------------------------------------------


@given(st.integers(0, 3), _LAG, _LAG, st.floats(0.01, 1))
def test_more_lag_never_sheds_less(level: int, one: float, other: float, target: float) -> None:
    less, more = sorted((one, other))
    assert 0 <= shed_level(level, less, target) <= shed_level(level, more, target) <= 3


@given(st.integers(0, 3), _LAG, st.floats(0.01, 1))
def test_shedding_begins_at_once_and_ends_by_one_step(level: int, lag: float, target: float) -> None:
    after = shed_level(level, lag, target)
    assert after >= level - 1
    if lag >= target * 4:
        assert after == 3


@given(st.integers(1, 3), st.floats(0.01, 1), st.floats(0.51, 0.99))
def test_near_the_mark_nothing_changes(level: int, target: float, part: float) -> None:
    mark = target * (1, 2, 4)[level - 1]
    assert shed_level(level, mark * part, target) == level
    assert shed_level(level, mark * 0.49, target) == level - 1


@given(st.integers(0, 3), st.integers(1, 100_000))
def test_who_matters_more_has_no_less_room(level: int, exchanges: int) -> None:
    found = rooms(level, exchanges)
    in_order = [found[each] for each in FROM_LOW]
    assert in_order == sorted(in_order)
    assert in_order[:level] == [0] * level
    assert found[Priority.CRITICAL] == exchanges


def observe(overload: Overload, *lags: float) -> int:
    for lag in lags:
        overload.observe(lag)
    return overload.level


def test_a_hiccup_is_no_overload_and_a_standing_queue_is() -> None:
    overload = Overload(OverloadSettings(lag=0.1))
    assert observe(overload, *([9.0] * (WINDOW - 1)), 0.0) == 0
    assert observe(overload, *([0.25] * WINDOW)) == 2
    assert not overload.admits(Priority.NORMAL, 0, 0.0)
    assert overload.admits(Priority.HIGH, 0, 0.0)
    assert observe(overload, *([0.15] * WINDOW)) == 2
    assert observe(overload, *([0.09] * WINDOW)) == 1
    assert observe(overload, *([0.0] * WINDOW)) == 0


def test_who_has_waited_for_long_is_not_served_late_unless_it_matters() -> None:
    overload = Overload(OverloadSettings(lag=0.1))
    for waited, admitted in ((0.0, 4), (0.1, 3), (0.2, 2), (0.4, 1), (60.0, 1)):
        assert [overload.admits(each, 0, waited) for each in FROM_LOW] == [False] * (4 - admitted) + [True] * admitted


async def test_a_turn_of_the_loop_ends_and_the_next_begins_anew() -> None:
    clock = ManualClock()
    turns = Turns(clock)
    assert turns.waited() == 0
    clock.advance(0.5)
    assert turns.waited() == 0.5
    await asyncio.sleep(0)
    assert turns.waited() == 0


# --- at work --------------------------------------------------------------------------------------------------


class Holding(RawUpstream):
    """Answers nothing until `go_on`."""

    def __init__(self) -> None:
        super().__init__(self.hold)
        self.go_on = asyncio.Event()

    async def hold(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await self.request(reader)
            await self.go_on.wait()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


@pytest.fixture
def upstream() -> Holding:
    return Holding()


async def test_the_lower_priority_goes_first_and_whoever_is_admitted_is_served(
    tmp_path: Path, upstream: Holding
) -> None:
    """200 requests at a gateway that has room for 20: each priority finds the room that is kept for it."""
    async with upstream.running() as address:
        routes = tuple(replace(route(address, each.value), prefix=(each.value,), priority=each) for each in FROM_LOW)
        plane = DataPlane(tmp_path, routes)
        plane.services.overload = Overload(OverloadSettings(exchanges=20))
        async with plane.running():
            pair = plane.pair()
            clients = {each: [await plane.connect(pair) for _ in range(50)] for each in FROM_LOW}
            for each, group in clients.items():
                for client in group:
                    client.send(request_bytes("GET", f"/{each.value}"))
                await plane.until(lambda done=each: _all_came(plane, done))
            assert plane.registry.open_count == 20
            upstream.go_on.set()
            answers = {each: [await client.answer() for client in group] for each, group in clients.items()}
    served = {each: Counter(answered.status for answered in group) for each, group in answers.items()}
    assert [served[each][200] for each in FROM_LOW] == [14, 3, 2, 1]
    assert [served[each][503] for each in FROM_LOW] == [36, 47, 48, 49]
    refused = [each for group in answers.values() for each in group if each.status == 503]
    assert {each.reason for each in refused} == {Reason.OVERLOADED.code}
    assert {each.header("retry-after") for each in refused} == {"1", "2", "3", "4"}  # they do not come back together
    assert Counter(plane.metrics.turned_away) == Counter({each: served[each][503] for each in FROM_LOW})
    assert sum(entry.reasons == (Reason.OVERLOADED.code,) for entry in plane.recorded.entries) == 180


def _all_came(plane: DataPlane, priority: Priority) -> bool:
    return sum(f"/{priority.value}" == entry.target for entry in plane.recorded.entries) == 50


async def test_of_those_who_come_together_the_last_do_not_wait_for_all(tmp_path: Path, upstream: Holding) -> None:
    """Each decision takes 20 ms here, and 48 requests come in one turn of the loop."""
    async with upstream.running() as address:
        plane = DataPlane(
            tmp_path,
            tuple(replace(route(address, each.value), prefix=(each.value,), priority=each) for each in FROM_LOW),
        )

        def slowly(query: Query) -> Answer:
            plane.clock.advance(0.02)
            return DENY

        plane.engine.answer = slowly
        certificate = client_certificate(plane)
        for number in range(48):
            transport = arrive(plane, certificate)
            cast(asyncio.Protocol, transport.get_protocol()).data_received(
                request_bytes("GET", f"/{FROM_LOW[number % 4].value}")
            )
        await asyncio.sleep(0)
        decided = Counter(entry.target for entry in plane.recorded.entries if entry.reasons == (Reason.NO_GRANT.code,))
    assert decided == {"/low": 2, "/normal": 3, "/high": 8, "/critical": 12}


async def test_lag_sheds_and_calm_brings_back(tmp_path: Path, upstream: Holding) -> None:
    upstream.go_on.set()
    async with upstream.running() as address:
        routes = tuple(replace(route(address, each.value), prefix=(each.value,), priority=each) for each in FROM_LOW)
        plane = DataPlane(tmp_path, routes)
        async with plane.running():
            client = await plane.connect()

            async def statuses() -> list[int]:
                return [(await client.get(f"/{each.value}")).status for each in FROM_LOW]

            assert await statuses() == [200] * 4
            observe(plane.services.overload, *([1.0] * WINDOW))
            assert await statuses() == [503, 503, 503, 200]
            for served in (1, 2, 3, 4):
                assert (await statuses()).count(200) == served
                observe(plane.services.overload, *([0.0] * WINDOW))


async def test_the_sweep_sees_by_how_much_the_loop_is_late(tmp_path: Path, upstream: Holding) -> None:
    async with upstream.running() as address:
        plane = DataPlane(tmp_path, (route(address),))
        async with plane.running():
            await asyncio.sleep(0)
            for _ in range(WINDOW):
                plane.clock.advance(2.0)  # woken so late
                for _ in range(5):
                    await asyncio.sleep(0)
            assert plane.services.overload.level == 3
            await plane.advance(0.25 * WINDOW)
            assert plane.services.overload.level == 2
