"""The firewall in the kernel: hosts in network namespaces, all in the networks of nodes, as is the router between them,
which a default router mostly is. Nothing of the machine's own network is touched."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import re
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.firewall.drift import counts, differences
from agent.firewall.keeper import Firewall
from agent.firewall.nft import Nft
from agent.firewall.ruleset import refill, removal, replacement, ruleset
from agent.firewall.settings import FirewallSettings
from agent.firewall.text import text
from agent.firewall.wall import Network as Block
from agent.firewall.wall import Wall, parsed
from foundation.wire.health import Firewall as Standing
from tests.fakes.clock import ManualClock
from tests.support.netns.network import LINK, Host, Network, network

PORT, PATIENCE = 7100, 0.25
NODES = parsed(["10.77.0.0/16", "fd77::/48"])


@pytest.fixture(scope="module")
def net() -> Iterator[Network]:
    with network("node-a", "node-b", "gateway") as made, contextlib.ExitStack() as closing:
        for host in made.hosts.values():
            with host.inside():
                closing.enter_context(socket.create_server(("::", PORT), family=socket.AF_INET6, dualstack_ipv6=True))
        yield made


@pytest.fixture(autouse=True)
def _bare(net: Network) -> Iterator[None]:
    yield
    for host in net.hosts.values():
        host.run("nft", "flush", "ruleset")


def wall(net: Network, *allow: str) -> Wall:
    return Wall(NODES, parsed(net["gateway"].addresses), parsed(allow))


def put(host: Host, what: Wall) -> None:
    host.run("nft", "-j", "-f", "-", text=replacement(what).decode())


def connects(host: Host, address: str) -> bool:
    """Whether a TCP connection comes about."""
    with host.inside(), contextlib.suppress(OSError):
        socket.create_connection((address, PORT), PATIENCE).close()
        return True
    return False


def echoes(host: Host, address: str) -> bool:
    """Whether an ICMP echo request is answered (RFC 792, RFC 4443 §4.1)."""
    is_v6 = ":" in address
    with host.inside():
        protocol = socket.getprotobyname("ipv6-icmp" if is_v6 else "icmp")
        asking = socket.socket(socket.AF_INET6 if is_v6 else socket.AF_INET, socket.SOCK_RAW, protocol)
    request = struct.pack("!BBHHH", 128 if is_v6 else 8, 0, 0, 77, 1)
    request = request[:2] + struct.pack("!H", ~sum(struct.unpack("!4H", request)) & 0xFFFF) + request[4:]
    with asking, contextlib.suppress(OSError):
        asking.settimeout(PATIENCE)
        asking.sendto(request, (address, 0))
        while True:
            answer = asking.recv(2000)[0 if is_v6 else 20 :]
            if answer[0] == (129 if is_v6 else 0):
                return True
    return False


def reached(host: Host, target: Host) -> set[str]:
    """How `target` is reached directly."""
    found = {f"tcp {address}" for address in target.addresses if connects(host, address)}
    return found | {f"icmp {address}" for address in target.addresses if echoes(host, address)}


def everything(target: Host) -> set[str]:
    return {f"{how} {address}" for how in ("tcp", "icmp") for address in target.addresses}


def test_without_it_nodes_reach_each_other(net: Network) -> None:
    assert reached(net["node-a"], net["node-b"]) == everything(net["node-b"])


@pytest.mark.parametrize("guarded", [["node-a"], ["node-b"], ["node-a", "node-b"]])
def test_nodes_do_not_reach_each_other_whichever_has_it(net: Network, guarded: list[str]) -> None:
    for name in guarded:
        put(net[name], wall(net))
    assert reached(net["node-a"], net["node-b"]) == set()
    assert reached(net["node-b"], net["node-a"]) == set()


def test_the_gateway_is_reached_and_reaches_nobody(net: Network) -> None:
    put(net["node-a"], wall(net))
    assert reached(net["node-a"], net["gateway"]) == everything(net["gateway"])
    assert reached(net["gateway"], net["node-a"]) == set()


def test_a_connection_to_the_gateway_goes_on_through_a_replacement(net: Network) -> None:
    with net["gateway"].inside(), socket.create_server(("", PORT + 1)) as server:
        with net["node-a"].inside():
            tunnel = socket.create_connection((net["gateway"].ipv4, PORT + 1), 5)
        serving, _ = server.accept()
    with tunnel, serving:
        tunnel.settimeout(5)
        for _ in range(3):
            put(net["node-a"], wall(net, "10.77.9.9"))
            put(net["node-a"], wall(net))
            serving.sendall(b"down")
            tunnel.sendall(b"up")
            assert (tunnel.recv(4), serving.recv(2)) == (b"down", b"up")


def test_an_open_connection_between_nodes_ends(net: Network) -> None:
    with net["node-b"].inside(), socket.create_server(("", PORT + 1)) as server:
        with net["node-a"].inside():
            before = socket.create_connection((net["node-b"].ipv4, PORT + 1), 5)
        serving, _ = server.accept()
    with before, serving:
        put(net["node-b"], wall(net))
        serving.settimeout(PATIENCE)
        before.sendall(b"still there?")
        with pytest.raises(TimeoutError):
            serving.recv(100)


def test_what_settings_allow_passes_both_ways(net: Network) -> None:
    put(net["node-a"], wall(net, *net["node-b"].addresses))
    assert reached(net["node-a"], net["node-b"]) == everything(net["node-b"])
    assert reached(net["node-b"], net["node-a"]) == everything(net["node-a"])


def test_the_machine_reaches_itself(net: Network) -> None:
    put(net["node-a"], wall(net))
    assert reached(net["node-a"], net["node-a"]) == everything(net["node-a"])


def test_who_is_outside_the_networks_is_left_alone(net: Network) -> None:
    put(net["node-a"], Wall(parsed(["10.78.0.0/16", "fd78::/48"])))
    assert reached(net["node-b"], net["node-a"]) == everything(net["node-a"])


def test_addresses_of_the_link_are_no_way_around(net: Network) -> None:
    shown = json.loads(net.router.run("ip", "-j", "-6", "addr", "show", "dev", "node-a", "scope", "link"))
    local = next(each["local"] for link in shown for each in link.get("addr_info", ()) if "local" in each)
    neighbour = f"{local}%{LINK}"
    assert echoes(net["node-a"], neighbour)
    put(net["node-a"], wall(net))
    assert not echoes(net["node-a"], neighbour)


def test_neighbours_are_still_found(net: Network) -> None:
    put(net["node-a"], wall(net))
    for link, host in ((LINK, net["node-a"]), ("node-a", net.router)):
        host.run("ip", "neigh", "flush", "dev", link)
    assert connects(net["node-a"], net["gateway"].ipv6)


def test_a_path_s_limit_is_still_told(net: Network) -> None:
    """The router, an address among the nodes', says that a packet was too big (RFC 8201)."""
    put(net["node-a"], wall(net))
    net.router.run("ip", "link", "set", "gateway", "mtu", "1300")
    try:
        for address in net["gateway"].addresses:
            with net["gateway"].inside():
                server = socket.create_server(("::", PORT + 2), family=socket.AF_INET6, dualstack_ipv6=True)
            with net["node-a"].inside():
                asking = socket.create_connection((address, PORT + 2), 5)
            with server, asking, server.accept()[0] as serving:
                serving.settimeout(10)
                asking.sendall(b"x" * 20_000)
                got = 0
                while got < 20_000:
                    got += len(serving.recv(20_000))
            net["node-a"].run("ip", "route", "flush", "cache")
    finally:
        net.router.run("ip", "link", "set", "gateway", "mtu", "1500")


def test_nothing_is_passed_on_between_nodes(net: Network) -> None:
    """Containers of a node, and a node that would be a router."""
    put_on_router = replacement(wall(net)).decode()
    net.router.run("nft", "-j", "-f", "-", text=put_on_router)
    try:
        assert reached(net["node-a"], net["node-b"]) == set()
        assert reached(net["node-a"], net["gateway"]) == everything(net["gateway"])
    finally:
        net.router.run("nft", "flush", "ruleset")


FOREIGN = """
add table inet filter
add chain inet filter input { type filter hook input priority 5; policy accept; }
add rule inet filter input tcp dport 7 counter drop
add table ip nat
add chain ip nat out { type nat hook postrouting priority 100; }
add rule ip nat out oifname ppp0 masquerade
add table inet sallyport-more
add set inet sallyport-more nodes4 { type ipv4_addr; }
add element inet sallyport-more nodes4 { 192.0.2.1 }
"""


def test_other_tables_are_as_they_were(net: Network) -> None:
    host = net["node-a"]
    host.run("nft", "-f", "-", text=FOREIGN)
    before = host.run("nft", "-s", "list", "ruleset")
    put(host, wall(net))
    put(host, wall(net))
    assert before in host.run("nft", "-s", "list", "ruleset")
    host.run("nft", "-j", "-f", "-", text=removal().decode())
    assert host.run("nft", "-s", "list", "ruleset") == before


def test_no_connection_gets_through_while_it_is_replaced(net: Network) -> None:
    """A table that is deleted and made anew in two steps lets some through; this flood finds them."""
    one, other = wall(net), wall(net, "10.77.9.9", "fd77::9")
    put(net["node-b"], one)

    def refilled(turn: int) -> None:
        net["node-b"].run("nft", "-j", "-f", "-", text=refill(other if turn % 2 else one).decode())

    assert flooded(net, refilled) == 0
    assert differences(ruleset(one), _listed(net["node-b"])) == ()
    in_two_steps = [json.dumps({"nftables": part}) for part in _halves(replacement(one))]

    def put_in_two_steps(_: int) -> None:
        for part in in_two_steps:
            net["node-b"].run("nft", "-j", "-f", "-", text=part)

    assert flooded(net, put_in_two_steps) > 0


def _halves(whole: bytes) -> tuple[list[Any], list[Any]]:
    commands = json.loads(whole)["nftables"]
    return commands[:3], commands[3:]


def flooded(net: Network, replace: Any, turns: int = 25) -> int:
    """How many datagrams from node a reach node b while it replaces its table `turns` times."""
    with net["node-b"].inside():
        receiving = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        receiving.bind(("", PORT))
    with net["node-a"].inside():
        sending = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    ended = threading.Event()

    def flood() -> None:
        while not ended.is_set():
            with contextlib.suppress(OSError):
                sending.sendto(b"x", (net["node-b"].ipv4, PORT))

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        for turn in range(turns):
            replace(turn)
    finally:
        ended.set()
        thread.join()
    passed = 0
    receiving.setblocking(False)
    with sending, receiving, contextlib.suppress(BlockingIOError):
        while receiving.recv(10):
            passed += 1
    return passed


WALLS = [
    Wall(NODES),
    Wall(NODES, parsed(["10.77.3.2"])),
    Wall(parsed(["10.0.0.0/24", "10.0.1.0/24", "10.0.2.0/24", "10.0.1.7", "fd00::/48", "fd00:1::/48"]), (), NODES),
    Wall(tuple(ipaddress.ip_network((0x0A000000 + 512 * each, 24)) for each in range(4000)), parsed(["fd00::1"])),
]


@pytest.mark.parametrize("given", WALLS, ids=range(len(WALLS)))
def test_the_kernel_gives_it_back_as_it_was_made(net: Network, given: Wall) -> None:
    put(net["node-a"], given)
    assert differences(ruleset(given), _listed(net["node-a"])) == ()
    net["node-a"].run("nft", "-j", "-f", "-", text=refill(wall(net)).decode())
    assert differences(ruleset(wall(net)), _listed(net["node-a"])) == ()
    net["node-a"].run("nft", "-j", "-f", "-", text=refill(given).decode())
    assert differences(ruleset(given), _listed(net["node-a"])) == ()
    net["node-a"].run("nft", "-f", "-", text=text(ruleset(given)))
    assert differences(ruleset(given), _listed(net["node-a"])) == ()


def test_rules_count_what_they_meet(net: Network) -> None:
    put(net["node-b"], wall(net))
    connects(net["node-a"], net["node-b"].ipv4)
    met = {(each.chain, each.rule) for each in counts(_listed(net["node-b"])) if each.packets}
    assert ("input", "from a node") in met
    assert ("forward", "from a node") not in met


def _listed(host: Host) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(host.run("nft", "-j", "list", "table", "inet", "sallyport"))["nftables"]
    return found


async def test_one_capability_is_enough(net: Network, tmp_path: Path) -> None:
    """As the service runs: not root, with CAP_NET_ADMIN alone (deploy/systemd/sallyport-agent.service)."""
    program, caps = tmp_path / "nft", "-all,+net_admin"
    alone = f"--reuid 65534 --regid 65534 --clear-groups --inh-caps={caps} --ambient-caps={caps} --bounding-set={caps}"
    program.write_text(f'#!/bin/sh\nexec setpriv {alone} nft "$@"\n')
    program.chmod(0o755)
    with net["node-a"].inside():
        for what in (replacement(wall(net)), refill(wall(net))):
            await Nft(program).execute(what)
        assert differences(ruleset(wall(net)), await Nft(program).listed() or ()) == ()


# --- the one that keeps it ------------------------------------------------------------------------------------------
class Site:
    """Host a, its firewall, and the networks that policy names."""

    def __init__(self, net: Network, folder: Path) -> None:
        self.net, self.host, self.folder = net, net["node-a"], folder
        self.clock = ManualClock()
        self.networks: tuple[Block, ...] | None = NODES
        self.recorded: list[str] = []
        self.firewall = self.started()

    def started(self) -> Firewall:
        return Firewall(
            FirewallSettings(),
            lambda: self.networks,
            self.net["gateway"].addresses,
            self.folder,
            self.clock,
            record=lambda event, _detail: self.recorded.append(event),
        )

    async def look(self) -> None:
        with self.host.inside():
            await self.firewall.look()

    def is_closed(self) -> bool:
        return not reached(self.host, self.net["node-b"]) and connects(self.host, self.net["gateway"].ipv4)


@pytest.fixture
def site(net: Network, tmp_path: Path) -> Site:
    return Site(net, tmp_path)


async def test_it_is_set_and_then_left_alone(site: Site) -> None:
    assert site.firewall.standing() is Standing.OFF
    await site.look()
    assert (site.is_closed(), site.firewall.standing()) == (True, Standing.IN_FORCE)
    handles = site.host.run("nft", "-a", "list", "ruleset")
    site.clock.advance(1000)
    await site.look()
    assert _without_counts(site.host.run("nft", "-a", "list", "ruleset")) == _without_counts(handles)


def _without_counts(listing: str) -> str:
    return re.sub(r"packets \d+ bytes \d+", "", listing)


@pytest.mark.parametrize(
    "tampering",
    [
        "delete table inet sallyport",
        "flush chain inet sallyport input\nflush chain inet sallyport output",
        "delete element inet sallyport nodes4 { 10.77.0.0/16 }",
        "insert rule inet sallyport input accept\ninsert rule inet sallyport output accept",
        "add element inet sallyport allow4 { 10.77.2.2 }",
        "add table inet sallyport { flags dormant; }",
    ],
)
async def test_what_was_changed_beside_it_is_told_and_mended(
    site: Site, tampering: str, caplog: pytest.LogCaptureFixture
) -> None:
    await site.look()
    site.host.run("nft", "-f", "-", text=tampering)
    assert reached(site.host, site.net["node-b"])
    await site.look()
    assert (site.is_closed(), site.firewall.standing()) == (True, Standing.DRIFTED)
    assert "changed beside the agent" in caplog.text
    assert site.recorded == ["firewall.drifted"]
    site.clock.advance(61)
    await site.look()
    assert site.firewall.standing() is Standing.IN_FORCE


async def test_a_new_revision_is_followed(site: Site) -> None:
    await site.look()
    site.networks = parsed(["10.99.0.0/16"])
    await site.look()
    assert reached(site.host, site.net["node-b"]) == everything(site.net["node-b"])
    assert site.firewall.standing() is Standing.IN_FORCE
    site.networks = ()
    await site.look()
    with site.host.inside():
        assert await Nft().listed() is None
    assert site.firewall.standing() is Standing.OFF


async def test_what_was_kept_is_in_force_before_anybody_was_asked(site: Site) -> None:
    await site.look()
    site.host.run("nft", "flush", "ruleset")
    site.networks = None
    again = site.started()
    with site.host.inside():
        await again.resume()
    assert (site.is_closed(), again.standing()) == (True, Standing.IN_FORCE)


async def test_nobody_s_word_leaves_what_there_is(site: Site) -> None:
    site.networks = None
    put(site.host, wall(site.net))
    await site.look()
    assert (site.is_closed(), site.firewall.standing()) == (True, Standing.OFF)
