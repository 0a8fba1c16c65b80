"""Nodes reach each other through gateways alone: over tunnels, by routes that policy names, while both ends may.

While links, gateways and agents fail, trespassers try what nobody may: the way from node to node, and routes without a
grant. After every fault none of them has got through, and the brokered way is there again, with nobody's help.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from deploy.demo.tpm_maker import TpmMaker
from tests.support.commands import CommandServer
from tests.support.netns.agents import LOOPBACK, AgentMachine, Port
from tests.support.netns.brokered import (
    ECHO,
    ECHO_UDP,
    LEAVING,
    SERVICE,
    UNGRANTED,
    UNOFFERED,
    brokering_fleet,
    calling_node,
    direct,
    running,
    serving_node,
    trespassers_between,
    tried,
)
from tests.support.netns.calls import HUNG_UP, UNREACHABLE, Trespasser, Trespassers, trying
from tests.support.netns.capture import Capture, Flow, capturing
from tests.support.netns.faults import cut, delayed, lossy, narrow, rewound
from tests.support.netns.fleet import Fleet
from tests.support.netns.services import Echo, conversing
from tests.support.processes import wait_until
from tests.support.redis import RedisServer, redis_server

MOVED_WITHIN = 5.0  # seconds


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture(scope="module")
def site(
    tmp_path_factory: pytest.TempPathFactory, tpm_maker: TpmMaker, commands: CommandServer, redis: RedisServer
) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("fleet")
    with brokering_fleet(folder, tpm_maker, commands, redis.socket) as made:
        yield made


@pytest.fixture(scope="module")
def serving(site: Fleet) -> Iterator[tuple[AgentMachine, Echo]]:
    with serving_node(site) as pair:
        yield pair


@pytest.fixture(scope="module")
def b(serving: tuple[AgentMachine, Echo]) -> AgentMachine:
    """Offers the echo."""
    return serving[0]


@pytest.fixture(scope="module")
def echo(serving: tuple[AgentMachine, Echo]) -> Echo:
    """What it offers."""
    return serving[1]


@pytest.fixture(scope="module")
def a(site: Fleet, b: AgentMachine) -> Iterator[AgentMachine]:
    """Uses it, by gw-1 first."""
    with calling_node(site) as agent:
        yield agent


@pytest.fixture(scope="module")
def other(site: Fleet, b: AgentMachine) -> Iterator[AgentMachine]:
    """Uses it, by gw-2 first."""
    ports, gateways = [Port(15100, "echo", "node-b")], site.gateways[::-1]
    with running(AgentMachine(site, site.add_node("other", "node-c"), ports, gateways=gateways)) as agent:
        yield agent


@pytest.fixture(scope="module")
def trespassers(a: AgentMachine, b: AgentMachine) -> Iterator[Trespassers]:
    with Trespassers(*trespassers_between(a, b)) as trying_all_the_time:
        yield trying_all_the_time


@pytest.fixture(autouse=True)
def _safe_and_back(a: AgentMachine, b: AgentMachine, trespassers: Trespassers) -> Iterator[None]:
    """What holds after every scenario."""
    yield
    for agent in (a, b):
        agent.comes_up()
    for port in (ECHO, ECHO_UDP):
        wait_until(partial(a.reaches, port), f"{port.route} to be there again")
    trespassers.are_refused()


def within(seconds: float, condition: Callable[[], bool], what: str) -> None:
    """Wait for what has to come in so many seconds."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"not within {seconds} seconds: {what}"
        time.sleep(0.01)


def foreign(capture: Capture, agent: AgentMachine) -> list[Flow]:
    """What left the host of `agent` and does not belong to a tunnel."""
    tunnels = {(each.gateway.host, each.gateway.ports["gateway"]) for each in agent.site.gateways}
    left = [flow for flow in capture.packets if flow.outgoing and not flow.neighbourly]
    assert {(flow.target, flow.target_port) for flow in left} >= tunnels, "a capture that saw nothing proves nothing"
    return [flow for flow in left if flow.protocol != "tcp" or (flow.target, flow.target_port) not in tunnels]


def test_streams_go_by_gateways_and_nothing_but_tunnels_leaves_a_node(
    site: Fleet, a: AgentMachine, b: AgentMachine, echo: Echo
) -> None:
    echo.came_from.clear()
    with capturing(a.host) as of_a, capturing(b.host) as of_b:
        for port in (ECHO, ECHO_UDP):
            assert a.reaches(port)
        with a.talk(ECHO) as talk:
            assert talk.says(bytes(1 << 20))
        assert tried(a, UNGRANTED) == HUNG_UP
        # Each calls its authority meanwhile: b for a newer revision, of which a stream tells; a to attest itself anew.
        number, attested = site.renumber_policy(), a.attested_until
        wait_until(lambda: a.reaches(ECHO) and b.has_revision(number), f"revision {number} at node-b")
        a.kill()
        a.start()
        wait_until(lambda: a.attested_until > attested, "node-a to be attested anew")
    assert (foreign(of_a, a), foreign(of_b, b)) == ([], [])
    assert {address.removeprefix("::ffff:") for address in echo.came_from} == {LOOPBACK}, "its own agent"


def test_the_direct_way_is_blocked_in_the_kernel_on_both_ends(
    a: AgentMachine, b: AgentMachine, other: AgentMachine, echo: Echo
) -> None:
    # 1. At the caller's end: nothing leaves it.
    with capturing(a.host) as of_a:
        for address in b.host.addresses:
            assert direct(a.host, address) == [False, False]
    assert not [flow for flow in of_a.packets if flow.target in b.host.addresses]
    # 2. At the target's end, where the caller's is gone: packets come, and nobody hears or answers them.
    echo.came_from.clear()
    with other.unwalled():
        with capturing(b.host) as of_b:
            for address in b.host.addresses:
                assert direct(other.host, address) == [False, False]
        assert {flow.protocol for flow in of_b.packets if flow.source in other.host.addresses} == {"tcp", "udp"}
        assert not [flow for flow in of_b.packets if flow.outgoing and flow.target in other.host.addresses]
        assert not [address for address in echo.came_from if address.removeprefix("::ffff:") != LOOPBACK]
        # 3. It is the firewalls that do it: without both there is a way.
        with b.unwalled():
            assert [direct(other.host, address) for address in b.host.addresses] == [[True, True]] * 2
    for address in b.host.addresses:
        assert direct(other.host, address) == [False, False]


def test_a_target_that_is_denied_sees_not_one_packet(a: AgentMachine, b: AgentMachine, echo: Echo) -> None:
    with capturing(b.host, "lo") as inside:
        for port in (UNGRANTED, UNOFFERED):
            assert tried(a, port) == HUNG_UP
    assert not [flow for flow in inside.packets if flow.target_port == SERVICE]
    with capturing(b.host, "lo") as inside:
        assert a.reaches(ECHO)
    assert [flow for flow in inside.packets if flow.target_port == SERVICE], "the capture would have seen it"


def test_a_killed_gateway_loses_its_streams_and_no_others(
    site: Fleet, a: AgentMachine, b: AgentMachine, other: AgentMachine
) -> None:
    first, second = site.gateways
    with conversing(a.host, LOOPBACK, ECHO.number, 5) as lost, conversing(other.host, LOOPBACK, 15100, 5) as kept:
        assert all(talk.says(b"before") for talk in (*lost, *kept))
        assert a.streams()[first.name] >= 5
        assert other.streams()[second.name] == 5
        first.kill()
        within(MOVED_WITHIN, lambda: a.reaches(ECHO) and a.reaches(ECHO_UDP), "streams by the other gateway")
        assert [talk.ending() for talk in lost] == ["cut"] * 5
        assert all(talk.says(b"after") for talk in kept)
        first.start()
        for agent in (a, b, other):
            agent.comes_up()
        assert all(talk.says(b"later") for talk in kept)


def test_gateways_relay_to_each_other(site: Fleet, a: AgentMachine, b: AgentMachine, echo: Echo) -> None:
    first, second = site.gateways
    with cut(site.network, a.host, second.host), cut(site.network, b.host, first.host):
        wait_until(lambda: (a.is_up_at(), b.is_up_at()) == ({first.name}, {second.name}), "each at one gateway")
        for port in (ECHO, ECHO_UDP):
            wait_until(partial(a.reaches, port), f"{port.route} by two gateways")
        with a.talk(ECHO) as talk:
            assert talk.says(bytes(1 << 20))
            second.kill()
            assert talk.ending() == "cut"
        second.start()
        wait_until(partial(a.reaches, ECHO), "the relay again")


def test_a_revoked_caller_is_cut_and_comes_back_nowhere(site: Fleet, b: AgentMachine) -> None:
    port = Port(15200, "echo", "node-b")
    caller = AgentMachine(site, site.add_node("leaving-caller", "node-c"), [port])
    with running(caller), caller.talk(port) as talk:
        assert talk.says(b"before")
        site.revoke(caller.node)
        assert talk.ending() == "cut"
        wait_until(lambda: not caller.is_up_at(), "its tunnels to be cut")
        with trying(Trespasser("a revoked caller", partial(tried, caller, port))):
            pass
        assert caller.is_up_at() == set()


def test_a_revoked_target_is_cut_and_comes_back_nowhere(site: Fleet, a: AgentMachine) -> None:
    offers = {"echo": f"tcp://{LOOPBACK}:{SERVICE}"}
    target = AgentMachine(site, site.add_node("leaving", "node-c"), offers=offers)
    with Echo(site.network["node-c"], SERVICE) as echo, running(target):
        wait_until(partial(a.reaches, LEAVING), "its service")
        with a.talk(LEAVING) as talk:
            assert talk.says(b"before")
            site.revoke(target.node)
            assert talk.ending() == "cut"
        echo.came_from.clear()
        with trying(Trespasser("a caller of a revoked target", partial(tried, a, LEAVING))):
            wait_until(lambda: not target.is_up_at(), "its tunnels to be cut")
        assert echo.came_from == []


def test_agents_that_are_killed_come_back(a: AgentMachine, b: AgentMachine) -> None:
    with a.talk(ECHO) as talk:
        assert talk.says(b"before")
        b.kill()
        assert b.has_wall(), "what was blocked stays blocked"
        assert talk.ending() == "cut"
        assert tried(a, ECHO) == HUNG_UP
    b.start()
    wait_until(partial(a.reaches, ECHO), "the service")
    a.kill()
    assert tried(a, ECHO) == UNREACHABLE
    a.start()


def test_streams_end_with_the_facts_that_they_rest_on(site: Fleet, a: AgentMachine) -> None:
    with a.talk(ECHO) as talk:
        assert talk.says(b"before")
        with cut(site.network, site.network["authority"]):
            assert talk.says(b"still")
            site.let_pass(31)
            assert talk.ending() == "cut"
            assert tried(a, ECHO) == HUNG_UP


def test_a_frozen_gateway_is_left(site: Fleet, a: AgentMachine) -> None:
    gateway = site.gateways[0]
    with gateway.frozen():
        wait_until(partial(a.reaches, ECHO), "streams by the other gateway")
        wait_until(lambda: a.is_up_at() == {site.gateways[1].name}, "the silent one to be given up")


def test_loss_on_every_link_costs_time_and_nothing_else(site: Fleet, a: AgentMachine, b: AgentMachine) -> None:
    with lossy(site.network, a.host, 5), lossy(site.network, b.host, 5), a.talk(ECHO) as talk:
        assert talk.says(bytes(100_000))


def test_a_node_whose_clock_is_set_back_waits_for_the_right_time(a: AgentMachine, b: AgentMachine) -> None:
    with rewound(b.clock, 3600):
        assert a.reaches(ECHO), "its tunnels stand"
        b.kill()
        b.launch()
        wait_until(lambda: bool(b.status()), "the agent to run")
        assert not a.reaches(ECHO), "to its clock, no gateway's certificate is good yet"
        assert not b.is_up_at()


def test_a_slow_and_narrow_link_costs_time_and_nothing_else(site: Fleet, a: AgentMachine) -> None:
    with delayed(site.network, a.host, 0.1, site.folder), narrow(site.network, a.host, "1mbit"), a.talk(ECHO) as talk:
        assert talk.says(bytes(50_000))
        wait_until(partial(a.reaches, ECHO_UDP), "datagrams")


def test_a_copied_disk_holds_no_tunnel(site: Fleet, a: AgentMachine) -> None:
    thief = AgentMachine(site, site.copy_disk(a.node, "node-c"), [Port(15300, "echo", "node-b")])
    with capturing(thief.host):
        thief.launch()
        assert thief.process is not None
        wait_until(lambda: "tls_key_unusable" in thief.told(), "the thief's agent to give up, or to go on in vain")
    assert thief.streams() == {}
    thief.kill()


def test_without_redis_gateways_do_not_relay_and_all_else_goes_on(
    site: Fleet, redis: RedisServer, a: AgentMachine, b: AgentMachine
) -> None:
    first, second = site.gateways
    redis.kill()
    assert a.reaches(ECHO)
    with cut(site.network, a.host, second.host), cut(site.network, b.host, first.host):
        wait_until(lambda: (a.is_up_at(), b.is_up_at()) == ({first.name}, {second.name}), "each at one gateway")
        assert tried(a, ECHO) == HUNG_UP
        redis.start()
        wait_until(partial(a.reaches, ECHO), "the relay again")
