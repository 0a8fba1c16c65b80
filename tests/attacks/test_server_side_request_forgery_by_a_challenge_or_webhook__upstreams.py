"""Row "server-side request forgery by a challenge or webhook" (SPIRE 1.14.2), for upstreams: whoever controls a name
that policy leads to does not control what is dialled. Private addresses are what upstreams have; loopback, link-local
and metadata are not, whichever way they are written, and DNS rebinding changes nothing."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytest

from foundation.reasons import Reason
from gateway.upstreams.resolve import DnsResolver
from policies.upstreams import Address, Discovery
from tests.support.gateway import DataPlane, RawUpstream, route

INNER = ("127.0.0.1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "169.254.169.254", "0.0.0.0")  # noqa: S104  # nothing listens


class Rebinding(DnsResolver):
    """Implements `gateway.upstreams.resolve.Resolver`: a name in the hands of an attacker, who changes it at will."""

    def __init__(self, *answers: str) -> None:
        super().__init__()
        self.answers: Sequence[str] = answers

    async def system(self, name: str) -> Sequence[str]:
        return self.answers


@pytest.mark.parametrize("answer", INNER)
async def test_a_name_does_not_lead_inside(tmp_path: Path, answer: str) -> None:
    upstream = RawUpstream()
    async with upstream.running() as address:
        plane = DataPlane(tmp_path, (route(Address("service.example", address.port)),))
        plane.upstreams._resolver = Rebinding(answer)
        async with plane.running():
            answered = await (await plane.connect()).get()
            assert (answered.status, answered.reason) == (502, Reason.UPSTREAM_ADDRESS_REFUSED.code)
            assert answer not in answered.body.decode()
    assert upstream.dials == 0


async def test_a_name_is_judged_with_every_dial(tmp_path: Path) -> None:
    upstream = RawUpstream()
    async with upstream.running() as address:
        listed = {"networks": ("127.0.0.2/32",)}
        plane = DataPlane(tmp_path, (route(Address("service.example", address.port), pool=listed),))
        resolver = plane.upstreams._resolver = Rebinding("127.0.0.2", "127.0.0.1")
        async with plane.running():
            client = await plane.connect()
            assert (await client.get()).reason == Reason.UPSTREAM_UNREACHABLE.code  # the listed one, where nobody is
            resolver.answers = ("127.0.0.1",)
            assert (await client.get()).reason == Reason.UPSTREAM_ADDRESS_REFUSED.code
    assert upstream.dials == 0


class _Zone(asyncio.DatagramProtocol):
    """A DNS server that answers every question of type A with one address (RFC 1035 §4.1)."""

    def __init__(self, address: str) -> None:
        self.address = address

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)  # uvloop's are not of the class

    def datagram_received(self, data: bytes, peer: tuple[str, int]) -> None:
        end = data.index(b"\0", 12) + 5
        is_a = data[end - 4 : end - 2] == b"\0\1"
        record = b"\xc0\x0c\0\1\0\1\0\0\0\1\0\4" + socket.inet_aton(self.address)
        head = data[:2] + b"\x81\x80\0\1" + (b"\0\1" if is_a else b"\0\0") + bytes(4)
        self.transport.sendto(head + data[12:end] + (record if is_a else b""), peer)


async def test_a_pool_that_is_a_name_does_not_follow_it_inside(tmp_path: Path) -> None:
    upstream = RawUpstream()
    loop = asyncio.get_running_loop()
    transport, zone = await loop.create_datagram_endpoint(lambda: _Zone("127.0.0.1"), local_addr=("127.0.0.1", 0))
    port = transport.get_extra_info("sockname")[1]
    async with upstream.running() as address:
        pool = {"addresses": (), "discovery": Discovery.DNS, "dns": Address("service.example", address.port)}
        plane = DataPlane(tmp_path, (route(address, pool=pool),))
        resolver = plane.upstreams._resolver = DnsResolver((f"127.0.0.1:{port}",))
        async with plane.running():
            await plane.advance(0.5)
            await plane.until(lambda: not plane.upstreams._pools["api"].looking_up)
            client = await plane.connect()
            assert (await client.get()).reason == Reason.UPSTREAM_ADDRESS_REFUSED.code
            plane.routes = (route(address, pool=pool | {"networks": ("127.0.0.0/8",)}),)
            plane.publish(revision=2)
            await plane.advance(3)
            await plane.until(lambda: not plane.upstreams._pools["api"].looking_up)
            assert (await client.get()).status == 200  # the pool lists the network
            zone.address = "169.254.169.254"
            await plane.advance(35)
            await plane.until(lambda: not plane.upstreams._pools["api"].looking_up)
            assert [str(each) for each in plane.upstreams._pools["api"].endpoints] == [str(address)]
        resolver.close()
    transport.close()
    assert upstream.dials == 1
