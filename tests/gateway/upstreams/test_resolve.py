"""Names by a real DNS server: dnsmasq."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from deploy.demo.free_ports import free_ports
from foundation.faults import Fault
from foundation.reasons import Reason
from gateway.upstreams.resolve import DnsResolver, Found, Place
from policies.upstreams import Address, Discovery, Pool

NAMES = """
10.1.0.1 store.test
10.1.0.2 store.test
fd12::3 store.test
10.1.0.9 other.test
127.0.0.1 inner.test
"""
WORDS = (
    "--srv-host=_store._tcp.test,store.test,2379,1,30",
    "--srv-host=_store._tcp.test,other.test,2380,5,10",
    "--srv-host=_store._tcp.test,inner.test,9,7",  # leads inside: the others serve
    "--srv-host=_store._tcp.test,missing.test,2381,1",  # the others serve
    "--srv-host=_inner._tcp.test,inner.test,9,1",
    "--cname=alias.test,store.test",
)


@dataclass
class Zone:
    """A server on loopback for what `names` says, each record for 17 seconds."""

    names: Path
    port: int
    process: asyncio.subprocess.Process

    def resolver(self) -> DnsResolver:
        return DnsResolver((f"127.0.0.1:{self.port}",))

    def reread(self) -> None:
        self.process.send_signal(signal.SIGHUP)


@contextlib.asynccontextmanager
async def dnsmasq(folder: Path) -> AsyncIterator[Zone]:
    (port,) = free_ports(1)
    (folder / "names").write_text(NAMES)
    process = await asyncio.create_subprocess_exec(
        shutil.which("dnsmasq") or "/usr/sbin/dnsmasq",
        *("--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--bind-interfaces"),
        *(f"--port={port}", "--listen-address=127.0.0.1", f"--addn-hosts={folder}/names", "--local=/test/"),
        *("--local-ttl=17", "--pid-file=", "--user=root", "--log-facility=/dev/null", *WORDS),
    )
    try:
        zone = Zone(folder / "names", port, process)
        async with asyncio.timeout(20):
            while await refused(zone, pool_of("store.test")):  # it tells nobody when it listens
                await asyncio.sleep(0.05)
        yield zone
    finally:
        process.kill()
        await process.wait()


def pool_of(name: str, port: int = 80, *networks: str) -> Pool:
    srv = name.startswith("_")
    return Pool(
        "p",
        discovery=Discovery.SRV if srv else Discovery.DNS,
        dns=Address(name, 0 if srv else port),
        networks=networks,
    )


async def looked_up(zone: Zone, pool: Pool) -> Found:
    resolver = zone.resolver()
    try:
        return await resolver.look_up(pool)
    finally:
        resolver.close()


async def refused(zone: Zone, pool: Pool) -> Reason | None:
    try:
        await looked_up(zone, pool)
    except Fault as fault:
        return fault.reason
    return None


async def test_names_become_addresses(tmp_path: Path) -> None:
    async with dnsmasq(tmp_path) as zone:
        store = {Address("10.1.0.1", 80), Address("10.1.0.2", 80), Address("fd12::3", 80)}
        found = await looked_up(zone, pool_of("store.test"))
        assert (set(found.addresses), set(found.addresses.values()), found.ttl) == (store, {"store.test"}, 17)
        assert set((await looked_up(zone, pool_of("alias.test"))).addresses) == store
        within = await looked_up(zone, pool_of("store.test", 80, "10.1.0.0/31"))
        assert set(within.addresses) == {Address("10.1.0.1", 80)}
        zone.names.write_text("10.1.0.4 store.test\n")
        zone.reread()
        async with asyncio.timeout(20):
            while set((await looked_up(zone, pool_of("store.test"))).addresses) != {Address("10.1.0.4", 80)}:
                await asyncio.sleep(0.05)  # it reads when it likes


async def test_services_become_the_addresses_of_their_targets(tmp_path: Path) -> None:
    async with dnsmasq(tmp_path) as zone:
        found = await looked_up(zone, pool_of("_store._tcp.test"))
        assert found.addresses == {
            Address("10.1.0.1", 2379): "store.test",
            Address("10.1.0.2", 2379): "store.test",
            Address("fd12::3", 2379): "store.test",
            Address("10.1.0.9", 2380): "other.test",
        }
        assert found.ttl <= 17
        assert found.places == {
            Address("10.1.0.1", 2379): Place(1, 30),
            Address("10.1.0.2", 2379): Place(1, 30),
            Address("fd12::3", 2379): Place(1, 30),
            Address("10.1.0.9", 2380): Place(5, 10),
        }


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing.test", Reason.UPSTREAM_UNREACHABLE),
        ("_missing._tcp.test", Reason.UPSTREAM_UNREACHABLE),
        ("inner.test", Reason.UPSTREAM_ADDRESS_REFUSED),
        ("_inner._tcp.test", Reason.UPSTREAM_ADDRESS_REFUSED),
    ],
)
async def test_what_is_not_there_or_leads_inside_is_refused(tmp_path: Path, name: str, reason: Reason) -> None:
    async with dnsmasq(tmp_path) as zone:
        assert await refused(zone, pool_of(name)) is reason


async def test_a_server_that_is_away_is_told_as_such() -> None:
    (port,) = free_ports(1)
    resolver = DnsResolver((f"127.0.0.1:{port}",))
    with pytest.raises(Fault) as away:
        await resolver.look_up(pool_of("store.test"))
    assert away.value.reason is Reason.UPSTREAM_UNREACHABLE
    resolver.close()
