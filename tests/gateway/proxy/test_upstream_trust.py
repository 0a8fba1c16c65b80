"""TLS to upstreams: who they must be, and what we prove."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from foundation.reasons import Reason
from foundation.tls import KeyPair, server_context
from policies.upstreams import Address, HealthCheck, UpstreamTls
from tests.support.certificates import SmallAuthority
from tests.support.gateway import GATEWAY, DataPlane, route
from tests.support.tls_upstream import serving

STORE = "spiffe://fleet.example/service/store"
EXPECTED = UpstreamTls(fleet=True, spiffe_id=STORE, client_certificate=True)


def plane_of(folder: Path, address: Address, tls: UpstreamTls, health: HealthCheck | None = None) -> DataPlane:
    return DataPlane(folder, (route(address, pool={"tls": tls, "health": health}),))


def store(plane: DataPlane, name: str = STORE) -> KeyPair:
    return plane.authority.service(name, name.rpartition("/")[2])


async def test_both_sides_prove_who_they_are(tmp_path: Path) -> None:
    plane = plane_of(tmp_path, Address("127.0.0.1", 1), EXPECTED)
    async with serving(server_context(store(plane), client_roots=plane.authority.pem)) as (address, proven):
        plane.routes = (route(address, pool={"tls": EXPECTED}),)
        plane.publish(revision=2)
        async with plane.running():
            assert (await (await plane.connect()).get()).status == 200
        assert proven == [GATEWAY]


@pytest.mark.parametrize(
    ("name", "tls"),
    [
        ("spiffe://fleet.example/service/other", EXPECTED),
        ("spiffe://fleet.example/node/store", EXPECTED),
        (STORE, replace(EXPECTED, spiffe_id="spiffe://other.example/service/store")),
        (STORE, UpstreamTls(fleet=True)),  # its host is not in the certificate
        (STORE, replace(EXPECTED, fleet=False, ca_file="{other}")),  # of another authority
    ],
)
async def test_another_is_refused_before_a_byte_is_written(tmp_path: Path, name: str, tls: UpstreamTls) -> None:
    (tmp_path / "other").mkdir()
    other = SmallAuthority(tmp_path / "other", "other").root
    tls = replace(tls, ca_file=tls.ca_file.format(other=other))
    plane = plane_of(tmp_path, Address("127.0.0.1", 1), tls)
    async with serving(server_context(store(plane, name), client_roots=None)) as (address, proven):
        plane.routes = (route(address, pool={"tls": tls, "health": HealthCheck("/", interval=0.5)}),)
        plane.publish(revision=2)
        async with plane.running():
            answered = await (await plane.connect()).get()
            assert (answered.status, answered.reason) == (502, Reason.UPSTREAM_UNTRUSTED.code)
            assert name not in answered.body.decode()
            await plane.advance(0.5)
            await plane.until(lambda: plane.upstreams.overview()[0]["addresses"][0]["state"] == "unhealthy")
        assert proven == []


async def test_a_certificate_with_two_names_is_nobodys(tmp_path: Path) -> None:
    plane = plane_of(tmp_path, Address("127.0.0.1", 1), EXPECTED)
    pair = plane.authority.services("both", STORE, "spiffe://fleet.example/service/other")
    async with serving(server_context(pair, client_roots=None)) as (address, proven):
        plane.routes = (route(address, pool={"tls": EXPECTED}),)
        plane.publish(revision=2)
        async with plane.running():
            assert (await (await plane.connect()).get()).reason == Reason.UPSTREAM_UNTRUSTED.code
        assert proven == []


async def test_an_upstream_that_asks_is_not_served_without_our_certificate(tmp_path: Path) -> None:
    silent = replace(EXPECTED, client_certificate=False)
    plane = plane_of(tmp_path, Address("127.0.0.1", 1), silent)
    async with serving(server_context(store(plane), client_roots=plane.authority.pem)) as (address, proven):
        plane.routes = (route(address, pool={"tls": silent}),)
        plane.publish(revision=2)
        async with plane.running():
            assert (await (await plane.connect()).get()).status == 502
        assert proven == []


async def test_a_renewed_certificate_is_proven_by_new_connections(tmp_path: Path) -> None:
    plane = plane_of(tmp_path, Address("127.0.0.1", 1), EXPECTED)
    async with serving(server_context(store(plane), client_roots=plane.authority.pem)) as (address, proven):
        plane.routes = (route(address, pool={"tls": EXPECTED}),)
        plane.publish(revision=2)
        async with plane.running():
            client = await plane.connect()
            assert (await client.get()).status == 200
            plane.own.calling = plane.authority.service("spiffe://fleet.example/gateway/gw-2", "renewed")
            plane.own.generation += 1
            assert (await client.get()).status == 200  # by the connection that is there
            await plane.advance(31)
            assert (await client.get()).status == 200
        assert proven == [GATEWAY, GATEWAY, "spiffe://fleet.example/gateway/gw-2"]


async def test_a_ca_file_that_changed_counts_for_new_connections(tmp_path: Path) -> None:
    ca_file = tmp_path / "upstream-ca.pem"
    tls = UpstreamTls(str(ca_file), spiffe_id=STORE)
    plane = plane_of(tmp_path, Address("127.0.0.1", 1), tls)
    ca_file.write_bytes(plane.authority.pem)
    async with serving(server_context(store(plane), client_roots=None)) as (address, _):
        plane.routes = (route(address, pool={"tls": tls}),)
        plane.publish(revision=2)
        async with plane.running():
            client = await plane.connect()
            assert (await client.get()).status == 200
            (tmp_path / "other").mkdir()
            ca_file.write_bytes(SmallAuthority(tmp_path / "other", "other").pem)
            await plane.advance(31)
            assert (await client.get()).reason == Reason.UPSTREAM_UNTRUSTED.code
