"""Services of a node that gateways ask for: what is checked, what is dialled, and what a service sees."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.services import Service, ServingSettings, parse_offers, refuse_all
from foundation.faults import Fault
from foundation.fields import Fields
from foundation.reasons import Reason
from foundation.wire.streams import StreamCall
from tests.fakes.gateway import Caller, End, FakeGateway
from tests.fakes.trust import spiffe
from tests.support.certificates import SmallAuthority
from tests.support.tunnels import Node, running


def call_of(service: str = "db", *, protocol: str = "tcp", source: str = "edge-x", revision: int = 1) -> StreamCall:
    return StreamCall(spiffe(source), ("edge",), "route", service, protocol, revision, "d-7")


@pytest.fixture
def gateway(tmp_path: Path) -> FakeGateway:
    return FakeGateway(SmallAuthority(tmp_path))


class Listening:
    """A service of TCP that says back what it hears. `accepted` counts its connections."""

    def __init__(self) -> None:
        self.accepted = 0
        self.broke_off = asyncio.Event()
        self.writers: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        self.writers.append(writer)
        try:
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
            writer.write_eof()
        except ConnectionError:
            self.broke_off.set()
        finally:
            writer.close()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        try:
            yield f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()


@asynccontextmanager
async def serving(gateway: FakeGateway, services: dict[str, str], **more: Any) -> AsyncIterator[tuple[Node, End]]:
    async with gateway.listening():
        node = Node(gateway.authority, [gateway.address], services=services, **more)
        async with node.running():
            yield node, await gateway.tunnel()


async def test_a_call_reaches_its_service(gateway: FakeGateway) -> None:
    db = Listening()
    async with db.listening() as where, serving(gateway, {"db": where}) as (node, end):
        caller = end.call(call_of())
        assert await caller.answer is None
        caller.stream.write(b"select" * 50_000)
        caller.stream.end()
        assert await caller.read(300_000) == b"select" * 50_000
        await caller.ended_at_node.wait()
        while node.services.status()["open"]:
            await asyncio.sleep(0.005)
    assert db.accepted == 1


async def test_a_service_at_a_unix_socket(gateway: FakeGateway, tmp_path: Path) -> None:
    web = Listening()
    server = await asyncio.start_unix_server(web.serve, tmp_path / "web.sock")
    async with serving(gateway, {"web": f"unix:{tmp_path}/web.sock"}) as (_, end):
        caller = end.call(call_of("web", protocol="http"))
        assert await caller.answer is None
        caller.stream.write(b"hello")
        assert await caller.read(5) == b"hello"
    server.close()


async def test_a_service_that_speaks_first_is_heard(gateway: FakeGateway) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 ready")
        await reader.read(-1)
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    where = f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with serving(gateway, {"mail": where}) as (_, end):
        caller = end.call(call_of("mail"))
        assert await caller.answer is None
        assert await caller.read(9) == b"220 ready"
        caller.stream.end()
        await caller.ended_at_node.wait()
    server.close()


async def test_whom_the_node_refuses_sends_a_service_not_one_packet(gateway: FakeGateway) -> None:
    db = Listening()
    async with db.listening() as where, serving(gateway, {"db": where}) as (node, end):
        node.services.check = lambda call: Reason.SEGMENT_FORBIDDEN
        assert await end.call(call_of()).answer is Reason.SEGMENT_FORBIDDEN
        node.services.check = refuse_all
        assert await end.call(call_of()).answer is Reason.REVISION_MISSING
        assert node.services.status()["refused"] == {"segment_forbidden": 1, "revision_missing": 1}
    assert db.accepted == 0


async def test_what_changed_while_it_was_dialled_counts(gateway: FakeGateway) -> None:
    db = Listening()
    async with db.listening() as where, serving(gateway, {"db": where}) as (node, end):
        answers = iter([None, Reason.SERVICE_NOT_OFFERED])
        node.services.check = lambda call: next(answers)
        caller = end.call(call_of())
        assert await caller.answer is Reason.SERVICE_NOT_OFFERED
        assert node.services.status()["open"] == 0


async def test_an_offer_that_is_taken_back_cuts_what_is_open(gateway: FakeGateway) -> None:
    db = Listening()
    async with db.listening() as where, serving(gateway, {"db": where, "web": where}) as (node, end):
        cut, kept = end.call(call_of("db")), end.call(call_of("web"))
        assert (await cut.answer, await kept.answer) == (None, None)
        node.services.check = lambda call: Reason.SERVICE_NOT_OFFERED if call.service == "db" else None
        node.services.offers_changed()
        assert await cut.broke_off is Reason.SERVICE_NOT_OFFERED
        kept.stream.write(b"x")
        assert await kept.read(1) == b"x"
        await db.broke_off.wait()


async def test_a_service_that_moved_is_cut_too(gateway: FakeGateway) -> None:
    db = Listening()
    async with db.listening() as where, serving(gateway, {"db": where}) as (node, end):
        caller = end.call(call_of())
        assert await caller.answer is None
        node.services.use({"db": Service.parse("tcp://127.0.0.1:1", "offers")})
        assert await caller.broke_off is Reason.SERVICE_NOT_OFFERED
        assert await end.call(call_of()).answer is Reason.SERVICE_UNREACHABLE


@pytest.mark.parametrize(("service", "protocol"), [("other", "tcp"), ("db", "udp"), ("metrics", "tcp")])
async def test_what_there_is_not_is_not_offered(gateway: FakeGateway, service: str, protocol: str) -> None:
    async with serving(gateway, {"db": "tcp://127.0.0.1:1", "metrics": "udp://127.0.0.1:1"}) as (_, end):
        assert await end.call(call_of(service, protocol=protocol)).answer is Reason.SERVICE_NOT_OFFERED


async def test_a_service_that_is_down_is_unreachable(gateway: FakeGateway, tmp_path: Path) -> None:
    services = {"db": "tcp://127.0.0.1:1", "web": f"unix:{tmp_path}/nothing"}
    async with serving(gateway, services) as (node, end):
        assert await end.call(call_of()).answer is Reason.SERVICE_UNREACHABLE
        assert await end.call(call_of("web")).answer is Reason.SERVICE_UNREACHABLE
        assert node.services.status()["open"] == 0


async def test_a_service_that_does_not_answer_is_unreachable_in_time(gateway: FakeGateway) -> None:
    full = socket.create_server(("127.0.0.1", 0), backlog=0)
    filling = [socket.socket() for _ in range(4)]
    for each in filling:  # its queue is full: a further connection hangs
        each.setblocking(False)
        each.connect_ex(full.getsockname())
    where = f"tcp://127.0.0.1:{full.getsockname()[1]}"
    async with serving(gateway, {"db": where}, serving=ServingSettings(connect=0.2)) as (node, end):
        assert await end.call(call_of()).answer is Reason.SERVICE_UNREACHABLE
        assert node.services.status()["open"] == 0
    for each in (full, *filling):
        each.close()


async def test_a_caller_who_gives_up_ends_the_dial(gateway: FakeGateway) -> None:
    full = socket.create_server(("127.0.0.1", 0), backlog=0)
    filling = [socket.socket() for _ in range(4)]
    for each in filling:
        each.setblocking(False)
        each.connect_ex(full.getsockname())
    async with serving(gateway, {"db": f"tcp://127.0.0.1:{full.getsockname()[1]}"}) as (node, end):
        caller = end.call(call_of())
        while not node.services.status()["open"]:
            await asyncio.sleep(0.005)
        caller.stream.reset(Reason.STREAM_ABORTED)
        while node.services.status()["open"]:
            await asyncio.sleep(0.005)
    for each in (full, *filling):
        each.close()


async def test_an_agent_that_ends_while_it_dials_leaves_no_stream(gateway: FakeGateway) -> None:
    full = socket.create_server(("127.0.0.1", 0), backlog=0)
    filling = [socket.socket() for _ in range(4)]
    for each in filling:
        each.setblocking(False)
        each.connect_ex(full.getsockname())
    async with gateway.listening():
        node = Node(gateway.authority, [gateway.address], services={"db": f"tcp://127.0.0.1:{full.getsockname()[1]}"})
        async with running(node.tunnels):
            async with running(node.services):
                caller = (await gateway.tunnel()).call(call_of())
                while not node.services.status()["open"]:
                    await asyncio.sleep(0.005)
            assert await caller.broke_off is Reason.DRAINING
            assert node.services.status()["open"] == 0
            assert await gateway.ends[0].call(call_of()).answer is Reason.DRAINING
    for each in (full, *filling):
        each.close()


async def test_streams_are_bounded_in_all_and_by_caller(gateway: FakeGateway) -> None:
    db = Listening()
    bounds = ServingSettings(streams=3, per_caller=2)
    async with db.listening() as where, serving(gateway, {"db": where}, serving=bounds) as (node, end):
        first = [end.call(call_of(source="one")) for _ in range(2)]
        assert [await each.answer for each in first] == [None, None]
        assert await end.call(call_of(source="one")).answer is Reason.STREAM_LIMIT
        assert await end.call(call_of(source="two")).answer is None
        assert await end.call(call_of(source="three")).answer is Reason.OVERLOADED
        first[0].stream.reset(Reason.STREAM_ABORTED)
        while node.services.status()["open"] == 3:
            await asyncio.sleep(0.005)
        assert await end.call(call_of(source="one")).answer is None
    assert db.accepted == 4


async def test_an_agent_that_stops_takes_no_more(gateway: FakeGateway) -> None:
    async with serving(gateway, {"db": "tcp://127.0.0.1:1"}) as (node, end):
        node.services.is_draining = True
        assert await end.call(call_of()).answer is Reason.DRAINING


async def test_a_call_that_is_none_ends_the_tunnel(gateway: FakeGateway) -> None:
    async with serving(gateway, {"db": "tcp://127.0.0.1:1"}) as (_, end):
        caller = Caller()
        caller.stream = end.tunnel.open(caller, b'{"source":"me"}')
        assert await caller.broke_off is Reason.TUNNEL_LOST


async def test_a_service_that_breaks_off_resets_the_stream(gateway: FakeGateway) -> None:
    db = Listening()
    async with db.listening() as where, serving(gateway, {"db": where}) as (node, end):
        caller = end.call(call_of())
        assert await caller.answer is None
        plain = db.writers[0].get_extra_info("socket")
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        db.writers[0].transport.abort()
        assert await caller.broke_off is Reason.STREAM_ABORTED
        while node.services.status()["open"]:
            await asyncio.sleep(0.005)


async def test_a_lost_tunnel_breaks_its_services_connections_off(gateway: FakeGateway) -> None:
    db = Listening()
    async with db.listening() as where, serving(gateway, {"db": where}) as (node, end):
        assert await end.call(call_of()).answer is None
        gateway.kill()
        await db.broke_off.wait()
        while node.services.status()["open"]:
            await asyncio.sleep(0.005)


class _Meter(asyncio.DatagramProtocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.transport.sendto(data.upper(), addr)


async def test_datagrams_reach_their_service_and_come_back(gateway: FakeGateway) -> None:
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(_Meter, local_addr=("127.0.0.1", 0))
    where = f"udp://127.0.0.1:{transport.get_extra_info('sockname')[1]}"
    bounds = ServingSettings(idle=0.3)
    async with serving(gateway, {"metrics": where}, serving=bounds) as (node, end):
        caller = end.call(call_of("metrics", protocol="udp"))
        assert await caller.answer is None
        for word in (b"one", b"x" * 9_000):
            assert caller.stream.send_datagram(word)
            assert await caller.datagrams.get() == word.upper()
        await caller.ended_at_node.wait()  # nobody used it for a while
        assert node.services.status()["open"] == 0
    transport.close()


async def test_data_on_a_stream_of_datagrams_breaks_it_off(gateway: FakeGateway) -> None:
    async with serving(gateway, {"metrics": "udp://127.0.0.1:9"}) as (node, end):
        caller = end.call(call_of("metrics", protocol="udp"))
        assert await caller.answer is None
        caller.stream.write(b"no datagram")
        assert await caller.broke_off is Reason.TUNNEL_MALFORMED
        while node.services.status()["open"]:
            await asyncio.sleep(0.005)


@pytest.mark.parametrize(
    "text", ["127.0.0.1:5432", "ftp://127.0.0.1:1", "tcp://nowhere", "unix:relative", "tcp://", ""]
)
def test_a_service_that_is_nowhere_is_refused(text: str) -> None:
    with pytest.raises(Fault) as caught:
        parse_offers(Fields({"offers": {"db": text}}, "agent", Reason.SETTING_INVALID))
    assert caught.value.reason is Reason.SETTING_INVALID
    assert caught.value.field == "agent.offers.db"


@given(st.text(max_size=60) | st.from_regex(r"(tcp|udp)://[a-z0-9.:\[\]-]{0,20}:[0-9]{0,6}", fullmatch=True))
def test_whatever_is_said_of_a_service_is_one_or_is_refused(text: str) -> None:
    try:
        service = Service.parse(text, "offers")
    except Fault:
        return
    assert (service.address is None) is service.path.startswith("/")


def test_a_services_name_is_one() -> None:
    with pytest.raises(Fault):
        parse_offers(Fields({"offers": {"Not a name": "unix:/x"}}, "agent", Reason.SETTING_INVALID))


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(Fault):
        ServingSettings.parse(Fields({"idle": "0s"}, "agent.serving", Reason.SETTING_INVALID))
