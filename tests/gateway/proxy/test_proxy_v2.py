"""PROXY v2 between us and HAProxy, both ways, and who is not believed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from foundation.faults import Fault
from foundation.fields import Fields
from foundation.reasons import Reason
from foundation.tls import client_context
from foundation.wire.proxy_protocol import LOCAL, Addresses, proxy_header
from gateway.proxy.forwarders import Forwarders
from gateway.proxy.services import GatewayListenerSettings
from policies.upstreams import Address, HealthCheck, UpstreamTls
from tests.support.gateway import HOST, DataPlane, RawClient, RawUpstream, gateway_to, route
from tests.support.haproxy import receiver, sender

FORWARDED = GatewayListenerSettings(proxy_protocol_from=("127.0.0.0/8",))
TOLD = proxy_header(Addresses(("192.0.2.7", 40_000), ("198.51.100.1", 443)))


def sources(plane: DataPlane) -> list[tuple[str, int]]:
    return [connection.caller.source for connection in plane.listener.connections]


async def fails(work: Awaitable[object]) -> bool:
    """Whether the connection ended over it."""
    try:
        await work
    except (OSError, EOFError):
        return True
    return False


async def connect_behind(plane: DataPlane, told: bytes) -> RawClient:
    """A client whose connection begins with these bytes."""
    reader, writer = await asyncio.open_connection(*plane.address)
    writer.write(told)
    context = client_context(plane.authority.pem, pair=plane.pair(), check_hostname=False)
    await writer.start_tls(context, server_hostname=HOST)
    client = RawClient(reader, writer)
    plane.clients.append(client)
    return client


# --- from load balancers --------------------------------------------------------------------------------


async def test_haproxy_says_whose_connection_it_forwards(tmp_path: Path) -> None:
    async with gateway_to(RawUpstream(), tmp_path, FORWARDED) as plane:
        with sender(tmp_path, plane.address) as front:
            straight, plane.address = plane.address, (front.host, front.port)
            client = await plane.connect()
            assert (await client.get()).status == 200
            own = client.writer.get_extra_info("sockname")
            assert sources(plane) == [own[:2]]
            plane.address = straight


async def test_who_says_nothing_is_not_served(tmp_path: Path) -> None:
    async with gateway_to(RawUpstream(), tmp_path, FORWARDED) as plane:
        assert await fails(plane.connect())
        assert plane.metrics.refused == [Reason.PROXY_HEADER_INVALID]


async def test_only_the_named_networks_may_connect(tmp_path: Path) -> None:
    settings = replace(FORWARDED, proxy_protocol_from=("10.0.0.0/8", "2001:db8::/32"))
    upstream = RawUpstream()
    async with gateway_to(upstream, tmp_path, settings) as plane:
        assert await fails(connect_behind(plane, TOLD))
        assert plane.metrics.refused == [Reason.PROXY_HEADER_INVALID]
    assert upstream.seen == []


async def test_a_header_is_no_certificate(tmp_path: Path) -> None:
    async with gateway_to(RawUpstream(), tmp_path, FORWARDED) as plane:
        reader, writer = await asyncio.open_connection(*plane.address)
        writer.write(TOLD)
        context = client_context(plane.authority.pem, check_hostname=False)
        if not await fails(writer.start_tls(context, server_hostname=HOST)):
            assert await fails(reader.readexactly(1))  # TLS 1.3 tells a client with the first byte that it reads
        await plane.until(lambda: plane.metrics.refused == [Reason.CLIENT_CERTIFICATE_INVALID])
        assert not plane.listener.connections


async def test_where_no_header_is_demanded_none_is_taken(tmp_path: Path) -> None:
    async with gateway_to(RawUpstream(), tmp_path) as plane:
        assert await fails(connect_behind(plane, TOLD))
        client = await plane.connect()
        assert (await client.get()).status == 200
        assert sources(plane) == [client.writer.get_extra_info("sockname")[:2]]


async def test_a_connection_of_the_balancers_own_is_its_own(tmp_path: Path) -> None:
    async with gateway_to(RawUpstream(), tmp_path, FORWARDED) as plane:
        client = await connect_behind(plane, LOCAL)
        assert (await client.get()).status == 200
        assert sources(plane) == [client.writer.get_extra_info("sockname")[:2]]


async def test_handshakes_are_counted_by_the_source_that_is_told(tmp_path: Path) -> None:
    settings = replace(FORWARDED, source_handshakes=1, source_burst=1)
    async with gateway_to(RawUpstream(), tmp_path, settings) as plane:
        assert (await (await connect_behind(plane, TOLD)).get()).status == 200
        assert await fails(connect_behind(plane, TOLD))
        assert plane.metrics.refused == [Reason.SOURCE_RATE_LIMITED]
        other = proxy_header(Addresses(("192.0.2.8", 40_000), ("198.51.100.1", 443)))
        assert (await (await connect_behind(plane, other)).get()).status == 200


def test_a_mapped_address_is_its_ipv4_address() -> None:
    assert Forwarders(("10.0.0.0/8",)).believe("::ffff:10.1.2.3")
    assert not Forwarders(("10.0.0.0/8",)).believe("::ffff:11.1.2.3")
    assert not Forwarders(())


def test_networks_are_checked_when_they_are_set() -> None:
    wrong: dict[str, Any] = {"proxy_protocol_from": ["10.0.0.1/8"]}
    with pytest.raises(Fault) as refused:
        GatewayListenerSettings.parse(Fields(wrong, "gateway.listener", Reason.SETTING_INVALID))
    assert refused.value.field == "gateway.listener.proxy_protocol_from"


# --- to upstreams ---------------------------------------------------------------------------------------


async def test_haproxy_hears_whose_request_it_gets(tmp_path: Path) -> None:
    with receiver(tmp_path) as address:
        plane = DataPlane(tmp_path, (route(address, pool={"proxy_protocol": True}),))
        async with plane.running():
            for _ in range(2):
                client = await plane.connect()
                host, port = client.writer.get_extra_info("sockname")[:2]
                for _ in range(2):
                    assert (await client.get()).body == f"{host} {port} 1".encode()
            (endpoint,) = plane.upstreams._pools["api"].endpoints.values()
            assert len(endpoint.connections) == 2  # each client address has its own


async def test_the_header_comes_before_the_handshake(tmp_path: Path) -> None:
    pool = {
        "proxy_protocol": True,
        "tls": UpstreamTls(fleet=True, server_name="store.internal", client_certificate=True),
    }
    plane = DataPlane(tmp_path, (route(Address("127.0.0.1", 1), pool=pool),))
    pair = plane.authority.server("store", "store.internal")
    (tmp_path / "store-both.pem").write_bytes(pair.certificate.read_bytes() + pair.key.read_bytes())
    words = f"ssl crt {tmp_path}/store-both.pem ca-file {plane.authority.root} verify required"
    with receiver(tmp_path, words) as address:
        plane.routes = (route(address, pool=pool),)
        plane.publish(revision=2)
        async with plane.running():
            client = await plane.connect()
            host, port = client.writer.get_extra_info("sockname")[:2]
            assert (await client.get()).body == f"{host} {port} 1 gateway".encode()


async def test_a_health_check_says_that_it_is_our_own(tmp_path: Path) -> None:
    seen: list[bytes] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readexactly(len(LOCAL)))
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")

    pool = {"proxy_protocol": True, "health": HealthCheck("/healthz", interval=1.0)}
    async with gateway_to(RawUpstream(handle), tmp_path, pool=pool) as plane:
        await plane.advance(0.5)
        await plane.until(lambda: bool(seen) and not plane.upstreams._probing)
        assert seen == [LOCAL]
        assert plane.upstreams.overview()[0]["addresses"][0]["state"] == "in_service"
