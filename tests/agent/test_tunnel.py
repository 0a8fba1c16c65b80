"""A node's tunnels: with whom, how they come back, and where a stream is asked for."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from agent.channel import Refusal
from agent.settings import Address
from agent.tunnel import SOFTWARE, TunnelSettings, may_ask_another
from foundation.faults import Fault
from foundation.fields import Fields
from foundation.reasons import Reason
from foundation.tunnel import Stream
from foundation.wire.streams import StreamAnswer, StreamRequest
from tests.fakes.clock import ManualClock
from tests.fakes.gateway import Caller, FakeGateway
from tests.support.certificates import SmallAuthority
from tests.support.tunnels import Node, folder

REQUEST = StreamRequest("db", "edge-b")


@pytest.fixture
def authority(tmp_path: Path) -> SmallAuthority:
    return SmallAuthority(tmp_path)


def taking(caller: Caller) -> object:
    def take(stream: Stream, answer: StreamAnswer) -> Caller:
        caller.stream = stream
        return caller

    return take


async def opened(node: Node) -> Caller:
    caller = Caller()
    await node.tunnels.open(REQUEST, taking(caller))  # type: ignore[arg-type]
    return caller


async def settled() -> None:
    """Let everything that is ready run."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_tunnel_greets_and_streams_go_both_ways(authority: SmallAuthority) -> None:
    async with FakeGateway(authority).listening() as gateway:
        node = Node(authority, [gateway.address], services={"db": "tcp://127.0.0.1:1"})
        async with node.running():
            caller = await opened(node)
            caller.stream.write(b"hello" * 100_000)
            caller.stream.end()
            assert await caller.read(500_000) == b"hello" * 100_000
            await caller.ended_at_node.wait()
    assert gateway.requests == [REQUEST]


async def test_the_greeting_tells_the_services_and_who_we_are(authority: SmallAuthority) -> None:
    async with FakeGateway(authority).listening() as gateway:
        node = Node(authority, [gateway.address], services={"db": "tcp://127.0.0.1:1", "alarm": "unix:/x"})
        async with node.running():
            end = await gateway.tunnel()
            assert end.hello is not None
            assert (end.hello.software, end.hello.services) == (SOFTWARE, ("alarm", "db"))
            assert str(end.node) == "spiffe://fleet.example/node/edge-a"


async def fault_of(node: Node) -> Fault:
    """Why the first dial came to nothing."""
    tunnel = node.tunnels.tunnels[0]
    while tunnel.fault is None:
        await asyncio.sleep(0.005)
    return tunnel.fault


async def test_a_server_that_is_no_gateway_is_not_spoken_to(authority: SmallAuthority) -> None:
    async with FakeGateway(authority, name="billing", kind="service").listening() as server:
        node = Node(authority, [server.address])
        async with node.running():
            fault = await fault_of(node)
            assert fault.reason is Reason.SERVER_UNTRUSTED
            assert "no gateway of ours" in fault.detail
            assert not any(end.hello for end in server.ends)


async def test_a_gateway_of_another_authority_is_not_spoken_to(authority: SmallAuthority, tmp_path: Path) -> None:
    stranger = SmallAuthority(folder(tmp_path, "stranger"))
    async with FakeGateway(stranger).listening() as gateway:
        node = Node(authority, [gateway.address])
        async with node.running():
            assert (await fault_of(node)).reason is Reason.SERVER_UNTRUSTED
            assert gateway.ends == []


async def test_a_gateway_under_another_name_is_not_spoken_to(authority: SmallAuthority) -> None:
    async with FakeGateway(authority).listening() as gateway:
        node = Node(authority, [Address("127.0.0.1", gateway.address.port)])
        async with node.running():
            assert (await fault_of(node)).reason is Reason.SERVER_UNTRUSTED


async def test_a_gateway_that_does_not_speak_the_protocol_is_left(authority: SmallAuthority) -> None:
    gateway = FakeGateway(authority)
    gateway.protocols = ("http/1.1",)
    async with gateway.listening():
        node = Node(authority, [gateway.address])
        async with node.running():
            assert (await fault_of(node)).reason in (Reason.TUNNEL_MALFORMED, Reason.SERVER_UNREACHABLE)
            assert not node.tunnels.is_up


async def test_a_gateway_that_does_not_greet_is_given_up(authority: SmallAuthority) -> None:
    gateway = FakeGateway(authority)
    gateway.greets = False
    async with gateway.listening():
        node = Node(authority, [gateway.address], tunnel=TunnelSettings(connect=0.2))
        async with node.running():
            assert (await fault_of(node)).reason is Reason.SERVER_UNREACHABLE


async def test_a_gateway_that_was_killed_is_found_again(authority: SmallAuthority) -> None:
    gateway = FakeGateway(authority)
    async with gateway.listening():
        node = Node(authority, [gateway.address])
        async with node.running():
            caller = await opened(node)
            gateway.kill()
            assert await caller.broke_off is Reason.TUNNEL_LOST
            await gateway.start()
            again = await opened(node)
            again.stream.write(b"back")
            assert await again.read(4) == b"back"


async def test_a_killed_gateway_costs_only_what_it_carried(authority: SmallAuthority) -> None:
    async with FakeGateway(authority).listening() as first, FakeGateway(authority, name="gw-2").listening() as second:
        node = Node(authority, [first.address, second.address])
        async with node.running():
            await node.up(2)
            one = await opened(node)
            first.decide = lambda request: Reason.OVERLOADED
            two = await opened(node)
            assert [len(first.users), len(second.users)] == [1, 1]
            first.kill()
            assert await one.broke_off is Reason.TUNNEL_LOST
            two.stream.write(b"still here")
            assert await two.read(10) == b"still here"
            three = await opened(node)
            assert three.stream.is_open
            assert len(second.users) == 2


@pytest.mark.parametrize(
    "reason", [Reason.TARGET_ABSENT, Reason.DRAINING, Reason.OVERLOADED, Reason.REVISION_DOWNGRADE]
)
async def test_the_next_gateway_is_asked_where_one_cannot_say(authority: SmallAuthority, reason: Reason) -> None:
    async with FakeGateway(authority).listening() as first, FakeGateway(authority, name="gw-2").listening() as second:
        first.decide = lambda request: reason
        node = Node(authority, [first.address, second.address])
        async with node.running():
            await node.up(2)
            await opened(node)
            assert (len(first.requests), len(second.users)) == (1, 1)


async def test_a_denial_is_final_and_names_its_decision(authority: SmallAuthority) -> None:
    async with FakeGateway(authority).listening() as first, FakeGateway(authority, name="gw-2").listening() as second:
        first.decide = lambda request: Reason.NO_GRANT
        node = Node(authority, [first.address, second.address])
        async with node.running():
            await node.up(2)
            with pytest.raises(Refusal) as caught:
                await opened(node)
            assert caught.value.reason is Reason.NO_GRANT
            assert caught.value.decision == "d-1"
            assert second.requests == []


def test_only_what_another_gateway_may_see_otherwise_is_asked_again() -> None:
    final = (Reason.NO_GRANT, Reason.SEGMENT_FORBIDDEN, Reason.IDENTITY_REVOKED, Reason.RATE_LIMITED, Reason.GRANTED)
    assert not any(map(may_ask_another, final))
    again = (Reason.TUNNEL_LOST, Reason.STALENESS_EXCEEDED, Reason.ENGINE_FAILED, Reason.STREAM_LIMIT)
    assert all(map(may_ask_another, again))


async def test_without_a_gateway_a_stream_is_refused_in_time(authority: SmallAuthority) -> None:
    node = Node(authority, [Address("localhost", 1)], tunnel=TunnelSettings(answer=0.1))
    async with node.running():
        with pytest.raises(Fault) as caught:
            await opened(node)
        assert caught.value.reason is Reason.SERVER_UNREACHABLE


async def test_a_gateway_that_never_answers_is_left_for_the_next(authority: SmallAuthority) -> None:
    async with FakeGateway(authority).listening() as first, FakeGateway(authority, name="gw-2").listening() as second:
        first.holds_answers = True
        node = Node(authority, [first.address, second.address], tunnel=TunnelSettings(answer=0.2))
        async with node.running():
            await node.up(2)
            await opened(node)
            assert len(second.users) == 1
            assert node.tunnels.stream_count == 1


async def test_a_caller_that_gives_up_leaves_no_stream(authority: SmallAuthority) -> None:
    async with FakeGateway(authority).listening() as gateway:
        gateway.holds_answers = True
        node = Node(authority, [gateway.address])
        async with node.running():
            end = await gateway.tunnel()
            asking = asyncio.create_task(opened(node))
            while not gateway.requests:
                await asyncio.sleep(0.005)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            assert node.tunnels.stream_count == 0
            while end.tunnel.state.open_count:
                await asyncio.sleep(0.005)


async def test_silence_ends_a_tunnel(authority: SmallAuthority) -> None:
    clock = ManualClock()
    async with FakeGateway(authority).listening() as gateway:
        node = Node(authority, [gateway.address], clock=clock)
        async with node.running():
            end = await gateway.tunnel()
            await settled()
            end.tunnel.is_lost = True  # it hears and answers nothing any more
            for _ in range(3):
                clock.advance(7.5)
                await settled()
            assert not end.lost.is_set()
            clock.advance(7.5)
            await end.lost.wait()


async def test_a_draining_gateway_is_followed_before_its_streams_end(authority: SmallAuthority) -> None:
    async with FakeGateway(authority).listening() as gateway:
        node = Node(authority, [gateway.address])
        async with node.running():
            old = await gateway.tunnel()
            caller = await opened(node)
            old.tunnel.drain()
            new = await gateway.tunnel(2)
            assert new is not old
            await gateway.wait_until(lambda: old.is_draining)
            caller.stream.write(b"goes on")
            assert await caller.read(7) == b"goes on"
            second = await opened(node)
            assert second.stream.is_open
            assert len(new.tunnel.streams) == len(old.tunnel.streams) == 1


async def test_a_renewed_certificate_makes_a_new_tunnel_and_loses_no_stream(authority: SmallAuthority) -> None:
    async with FakeGateway(authority).listening() as gateway:
        node = Node(authority, [gateway.address], tunnel=TunnelSettings(ping=0.1, silence=5))
        async with node.running():
            old = await gateway.tunnel()
            caller = await opened(node)
            node.tunnels.renew()
            await gateway.tunnel(2)
            await gateway.wait_until(lambda: old.is_draining)
            caller.stream.write(b"goes on")
            assert await caller.read(7) == b"goes on"
            caller.stream.end()
            await caller.ended_at_node.wait()
            await old.lost.wait()  # with its last stream
            assert node.tunnels.is_up
            assert node.credentials.asked == 2


@pytest.mark.parametrize("follows", [30.0, 0.0])
async def test_a_gateway_below_the_floor_is_asked_last_until_it_has_followed(
    authority: SmallAuthority, monkeypatch: pytest.MonkeyPatch, follows: float
) -> None:
    monkeypatch.setattr("agent.tunnel._FOLLOWS", follows)
    async with FakeGateway(authority).listening() as first, FakeGateway(authority, name="gw-2").listening() as second:
        first.revision, second.revision = 4, 5
        node = Node(authority, [first.address, second.address], floor=5)
        async with node.running():
            await node.up(2)
            await opened(node)
            asked = second if follows else first
            assert len(asked.requests) == len(first.requests) + len(second.requests) == 1
            assert [row["behind"] for row in node.tunnels.status()] == [bool(follows), False]


async def test_a_gateway_that_breaks_the_protocol_is_hung_up_on(authority: SmallAuthority) -> None:
    async with FakeGateway(authority).listening() as gateway:
        node = Node(authority, [gateway.address])
        async with node.running():
            end = await gateway.tunnel()
            assert end.transport is not None
            end.transport.write(b"\xff" * 64)
            await end.lost.wait()


async def test_gateways_come_and_go_with_the_settings(authority: SmallAuthority) -> None:
    async with FakeGateway(authority).listening() as first, FakeGateway(authority, name="gw-2").listening() as second:
        node = Node(authority, [first.address], tunnel=TunnelSettings(ping=0.1, silence=5))
        async with node.running():
            end = await first.tunnel()
            caller = await opened(node)
            node.tunnels.use([second.address])
            await second.tunnel()
            caller.stream.write(b"goes on")
            assert await caller.read(7) == b"goes on"
            caller.stream.end()
            await end.lost.wait()
            await opened(node)
            assert len(second.users) == 1


async def test_the_end_of_the_agent_ends_its_tunnels(authority: SmallAuthority) -> None:
    async with FakeGateway(authority).listening() as gateway:
        node = Node(authority, [gateway.address])
        async with node.running():
            caller = await opened(node)
        assert await caller.broke_off is Reason.TUNNEL_LOST
        await gateway.ends[0].lost.wait() if gateway.ends else None


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(Fault, match="silence"):
        TunnelSettings.parse(Fields({"ping": "30s", "silence": "30s"}, "agent.tunnel", Reason.SETTING_INVALID))
