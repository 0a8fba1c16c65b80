"""Local ports: what programs of this machine see of them."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.port import PortSettings
from agent.ports import Ports
from agent.splice import LITTLE, READ, reset_when_closed
from deploy.demo.free_ports import free_ports
from foundation.faults import Fault
from foundation.fields import Fields
from foundation.reasons import Reason
from foundation.wire.streams import StreamAnswer, StreamRequest
from foundation.wire.tunnel import WINDOW
from tests.fakes.gateway import Echo, FakeGateway, Silent
from tests.support.certificates import SmallAuthority
from tests.support.tunnels import Node, running

DB = PortSettings("127.0.0.1:1", "db", "edge-b")


@pytest.fixture
def gateway(tmp_path: Path) -> FakeGateway:
    return FakeGateway(SmallAuthority(tmp_path))


@asynccontextmanager
async def listening(gateway: FakeGateway, port: PortSettings) -> AsyncIterator[tuple[Node, Any, Ports]]:
    """A node with one tunnel and one port, and where that listens: at a number that is free, or its Unix socket."""
    if port.path is None:
        port = replace(port, listen=f"127.0.0.1:{free_ports(1)[0]}")
    async with gateway.listening():
        node = Node(gateway.authority, [gateway.address])
        ports = Ports([port], node.tunnels, node.clock)
        async with node.running(), running(ports):
            await node.up()
            while ports[port].address is None:
                await asyncio.sleep(0.005)
            yield node, ports[port].address, ports


async def test_bytes_go_both_ways_and_each_end_ends_by_itself(gateway: FakeGateway) -> None:
    async with listening(gateway, DB) as (_, address, ports):
        reader, writer = await asyncio.open_connection(*address)
        data = bytes(range(256)) * 8_000
        writer.write(data)
        writer.write_eof()
        assert await reader.read(-1) == data
        writer.close()
        while ports.status()[0]["open"]:
            await asyncio.sleep(0.005)
    assert gateway.requests == [StreamRequest("db", "edge-b")]


async def test_a_unix_socket_does_too_and_is_for_its_group(gateway: FakeGateway, tmp_path: Path) -> None:
    path = tmp_path / "db"
    async with listening(gateway, PortSettings(f"unix:{path}", "db", "edge-b")):
        assert path.stat().st_mode & 0o777 == 0o660
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"hello")
        writer.write_eof()
        assert await reader.read(-1) == b"hello"
        writer.close()
    assert not path.exists()


async def test_a_refused_program_is_broken_off_and_told_in_the_log(
    gateway: FakeGateway, caplog: pytest.LogCaptureFixture
) -> None:
    gateway.decide = lambda request: Reason.NO_GRANT
    async with listening(gateway, DB) as (_, address, ports):
        for _ in range(3):
            reader, writer = await asyncio.open_connection(*address)
            with pytest.raises(ConnectionResetError):
                await reader.read(1)
            writer.close()
        assert ports.status()[0]["refused"] == 3
    told = [record for record in caplog.records if "no_grant" in record.getMessage()]
    assert len(told) == 1
    assert told[0].__dict__["decision"] == "d-1"


async def test_nothing_is_read_before_the_gateway_has_accepted(gateway: FakeGateway) -> None:
    gateway.holds_answers = True
    async with listening(gateway, DB) as (node, address, _):
        plain = socket.create_connection(address)
        plain.setblocking(False)
        sent = 0
        while True:
            try:
                sent += plain.send(b"x" * 65_536)
            except BlockingIOError:
                if gateway.requests:
                    break
                await asyncio.sleep(0.005)
        # All of it is in the kernel: neither the tunnel nor the port has a byte.
        (end,) = gateway.ends
        assert all(stream.backlog == 0 for link in node.tunnels.tunnels[0].links for stream in link.tunnel.streams)
        assert [type(stream.user).__name__ for stream in end.tunnel.streams] == ["_Nobody"]
        assert sent > 0
        plain.close()


async def test_a_reader_that_does_not_read_stops_the_writer(gateway: FakeGateway) -> None:
    gateway.use = Silent
    async with listening(gateway, DB) as (node, address, _):
        plain = socket.create_connection(address)
        plain.setblocking(False)
        stuck = 0
        while stuck < 20:
            try:
                plain.send(b"x" * 65_536)
                stuck = 0
            except BlockingIOError:
                stuck += 1
                await asyncio.sleep(0.01)
        (stream,) = node.tunnels.tunnels[0].links[0].tunnel.streams
        assert gateway.users[0].got == WINDOW
        assert 0 < stream.backlog <= READ // 2 + READ
        plain.close()


async def test_a_tunnel_that_stands_still_holds_a_bounded_sum_of_all_streams(
    gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.splice.MUCH", 1 << 20)
    many = replace(DB, connections=300)
    async with listening(gateway, many) as (node, address, _):
        programs = []
        for _ in range(300):
            programs.append(socket.create_connection(address))
            programs[-1].setblocking(False)
        while len(gateway.users) < 300:
            await asyncio.sleep(0.005)
        gateway.ends[0].transport.pause_reading()  # type: ignore[union-attr]
        tunnel = node.tunnels.tunnels[0].links[0].tunnel
        stuck = 0
        while stuck < 10:
            before = tunnel.buffered
            for program in programs:
                with contextlib.suppress(BlockingIOError):
                    program.send(b"x" * 65_536)
            await asyncio.sleep(0.02)
            stuck = stuck + 1 if tunnel.buffered == before else 0
        waiting = sum(stream.backlog for stream in tunnel.streams)
        assert 1 << 20 < waiting <= 1.5 * ((1 << 20) * (1 + math.log(READ / LITTLE)) + 300 * LITTLE)
        for program in programs:
            program.close()


async def test_a_program_that_does_not_read_stops_the_other_side(gateway: FakeGateway) -> None:
    async with listening(gateway, DB) as (_, address, _ports):
        plain = socket.create_connection(address)
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        while not gateway.users:
            await asyncio.sleep(0.005)
        stream = gateway.users[0].stream
        for _ in range(400):
            stream.write(b"y" * 65_536)
        before = -1
        while stream.backlog != before:
            before = stream.backlog
            await asyncio.sleep(0.1)
        assert stream.backlog > 10 << 20  # it waits where it came from
        plain.close()


async def test_a_reset_of_the_stream_resets_the_program(gateway: FakeGateway) -> None:
    async with listening(gateway, DB) as (_, address, _ports):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"hello")
        assert await reader.read(5) == b"hello"
        gateway.users[0].stream.reset(Reason.CUT_BY_REVOCATION)
        with pytest.raises(ConnectionResetError):
            await reader.read(1)
        writer.close()


async def test_a_program_that_breaks_off_resets_the_stream(gateway: FakeGateway) -> None:
    async with listening(gateway, DB) as (node, address, _ports):
        _reader, writer = await asyncio.open_connection(*address)
        while not gateway.users:
            await asyncio.sleep(0.005)
        reset_when_closed(writer.get_extra_info("socket"))
        writer.transport.abort()
        while node.tunnels.stream_count:
            await asyncio.sleep(0.005)
        while gateway.users[0].reason is None:
            await asyncio.sleep(0.005)


async def test_a_killed_gateway_breaks_the_connection_off(gateway: FakeGateway) -> None:
    async with listening(gateway, DB) as (_, address, ports):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"hello")
        assert await reader.read(5) == b"hello"
        gateway.kill()
        with pytest.raises(ConnectionResetError):
            await reader.read(1)
        writer.close()
        assert ports.status()[0]["open"] == 0


async def test_connections_beyond_the_bound_wait_in_the_kernel(gateway: FakeGateway) -> None:
    async with listening(gateway, PortSettings("127.0.0.1:1", "db", "edge-b", connections=2)) as (_, address, _ports):
        first = [await asyncio.open_connection(*address) for _ in range(2)]
        _, third = await asyncio.open_connection(*address)
        while len(gateway.users) < 2:
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.05)
        assert len(gateway.users) == 2
        first[0][1].write_eof()
        first[0][1].close()
        while len(gateway.users) < 3:
            await asyncio.sleep(0.005)
        for writer in (third, first[1][1]):
            writer.close()


async def test_a_thousand_streams_share_one_tunnel(gateway: FakeGateway) -> None:
    async with listening(gateway, PortSettings("127.0.0.1:1", "db", "edge-b", connections=1000)) as (node, address, _):

        async def ask(number: int) -> None:
            reader, writer = await asyncio.open_connection(*address)
            data = number.to_bytes(4, "big") * 5_000
            writer.write(data)
            writer.write_eof()
            assert await reader.read(-1) == data
            writer.close()

        async with asyncio.TaskGroup() as group:
            for number in range(1000):
                group.create_task(ask(number))
        assert len(gateway.ends) == 1
        while node.tunnels.stream_count:
            await asyncio.sleep(0.005)


async def test_a_port_that_goes_breaks_off_who_still_waits_and_leaves_no_stream(gateway: FakeGateway) -> None:
    gateway.holds_answers = True
    async with listening(gateway, DB) as (node, address, ports):
        reader, writer = await asyncio.open_connection(*address)
        while not gateway.requests:
            await asyncio.sleep(0.005)
        ports.use([])
        with pytest.raises(ConnectionResetError):
            await reader.read(1)
        writer.close()
        assert node.tunnels.stream_count == 0
        while gateway.ends[0].tunnel.state.open_count:
            await asyncio.sleep(0.005)


async def test_a_program_that_is_gone_before_its_stream_is_accepted(gateway: FakeGateway) -> None:
    gateway.holds_answers = True
    async with listening(gateway, DB) as (node, address, ports):
        plain = socket.create_connection(address)
        while not gateway.requests:
            await asyncio.sleep(0.005)
        reset_when_closed(plain)
        plain.close()
        (stream,) = gateway.ends[0].tunnel.streams
        stream.accept(Echo(stream), StreamAnswer("d-1").encode())
        while node.tunnels.stream_count or ports.status()[0]["open"]:
            await asyncio.sleep(0.005)


async def test_what_comes_with_the_answer_is_not_lost(gateway: FakeGateway) -> None:
    gateway.holds_answers = True
    async with listening(gateway, DB) as (_, address, _ports):
        reader, writer = await asyncio.open_connection(*address)
        while not gateway.requests:
            await asyncio.sleep(0.005)
        (stream,) = gateway.ends[0].tunnel.streams
        stream.accept(Echo(stream), StreamAnswer("d-1").encode())
        stream.write(b"220 ready")
        stream.end()
        assert await reader.read(-1) == b"220 ready"
        writer.write(b"QUIT")
        writer.write_eof()
        writer.close()


class _Programs(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.got: asyncio.Queue[bytes] = asyncio.Queue()

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.got.put_nowait(data)


async def program(address: Any) -> tuple[asyncio.DatagramTransport, asyncio.Queue[bytes]]:
    transport, protocol = await asyncio.get_running_loop().create_datagram_endpoint(_Programs, remote_addr=address)
    return transport, protocol.got


METRICS = PortSettings("127.0.0.1:1", "metrics", "edge-b", "udp", connections=2, idle=0.3)


async def test_datagrams_go_both_ways_one_stream_for_each_program(gateway: FakeGateway) -> None:
    async with listening(gateway, METRICS) as (_, address, _ports):
        one, from_one = await program(address)
        two, from_two = await program(address)
        for size in (1, 100, 9_000):
            one.sendto(b"1" * size)
            two.sendto(b"2" * size)
            assert await from_one.get() == b"1" * size
            assert await from_two.get() == b"2" * size
        assert gateway.requests == [StreamRequest("metrics", "edge-b", "udp")] * 2
        three, from_three = await program(address)
        three.sendto(b"beyond the bound")
        one.sendto(b"x")
        assert await from_one.get() == b"x"
        assert from_three.empty()
        for transport in (one, two, three):
            transport.close()


async def test_what_nobody_sends_any_more_ends(gateway: FakeGateway) -> None:
    async with listening(gateway, METRICS) as (node, address, ports):
        one, got = await program(address)
        one.sendto(b"x")
        assert await got.get() == b"x"
        assert ports.status()[0]["open"] == 1
        while ports.status()[0]["open"]:
            await asyncio.sleep(0.01)
        while node.tunnels.stream_count:
            await asyncio.sleep(0.01)
        one.sendto(b"again")
        assert await got.get() == b"again"
        one.close()


async def test_refused_datagrams_are_dropped_and_asked_for_once_in_a_while(gateway: FakeGateway) -> None:
    gateway.decide = lambda request: Reason.NO_GRANT
    async with listening(gateway, METRICS) as (_, address, ports):
        one, got = await program(address)
        for _ in range(50):
            one.sendto(b"x")
            await asyncio.sleep(0.002)
        while not ports.status()[0]["refused"]:
            await asyncio.sleep(0.01)
        assert len(gateway.requests) == 1
        assert got.empty()
        one.close()


async def test_ports_come_and_go_with_the_settings(gateway: FakeGateway) -> None:
    async with listening(gateway, DB) as (_, address, ports):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"hello")
        assert await reader.read(5) == b"hello"
        other = PortSettings(f"127.0.0.1:{address[1]}", "db2", "edge-b")
        ports.use([other])
        writer.write(b"still")
        assert await reader.read(5) == b"still"
        while ports[other].address is None:
            await asyncio.sleep(0.005)
        reader, second = await asyncio.open_connection(*address)
        second.write(b"new")
        assert await reader.read(3) == b"new"
        assert gateway.requests[-1].route == "db2"
        for each in (writer, second):
            each.close()


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"listen": "0.0.0.0:1"}, "listen"),
        ({"listen": "[::]:1"}, "listen"),
        ({"listen": "db.example:1"}, "listen"),
        ({"listen": "nowhere"}, "listen"),
        ({"listen": "unix:/x", "protocol": "udp"}, "listen"),
        ({"protocol": "sctp"}, "protocol"),
        ({"route": "Not a name"}, "route"),
        ({"connections": 0}, "connections"),
        ({"idle": "0s"}, "idle"),
        ({"colour": "red"}, "agent.port"),
    ],
)
def test_settings_that_are_wrong_are_named(change: dict[str, Any], names: str) -> None:
    with pytest.raises(Fault) as caught:
        parse({"listen": "127.0.0.1:1", "route": "db", "target": "edge-b", **change})
    assert names in caught.value.field


def test_others_may_use_a_port_where_the_settings_say_so() -> None:
    port = parse({"listen": "0.0.0.0:1", "route": "db", "target": "edge-b", "allow_remote": True})
    assert port.listen == "0.0.0.0:1"


def parse(section: dict[str, Any]) -> PortSettings:
    return PortSettings.parse(Fields(section, "agent.port", Reason.SETTING_INVALID))
