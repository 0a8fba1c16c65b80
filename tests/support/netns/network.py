"""A network of hosts in namespaces: each has one link to a router, with IPv4 and IPv6, and a default route over it.

    host `node-a`                      router
    eth0 10.77.1.2, fd77:0:0:1::2 ──── node-a 10.77.1.1, fd77:0:0:1::1

Nothing of the machine's own network is touched: the links are made inside the router, and no way leads out of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from tests.support.netns.keeper import Keeper
from tests.support.netns.namespaces import Namespace, require_root

LINK = "eth0"
# No duplicate address detection and no router advertisements: addresses are good at once, and stay.
_QUIET = {
    "ipv6/conf/all/accept_dad": 0,
    "ipv6/conf/default/accept_dad": 0,
    "ipv6/conf/default/accept_ra": 0,
    "ipv6/conf/all/keep_addr_on_down": 1,
    "ipv6/conf/default/keep_addr_on_down": 1,
    "ipv4/conf/default/rp_filter": 0,
    "ipv4/conf/all/rp_filter": 0,
}
_FORWARDING = {"ipv4/ip_forward": 1, "ipv6/conf/all/forwarding": 1}


class Host(Namespace):
    """One machine."""

    def __init__(self, name: str, number: int) -> None:
        super().__init__(name)
        self.ipv4, self.ipv6 = f"10.77.{number}.2", f"fd77:0:0:{number}::2"
        self.subnets = (f"10.77.{number}.0/24", f"fd77:0:0:{number}::/64")
        self.gateway4, self.gateway6 = f"10.77.{number}.1", f"fd77:0:0:{number}::1"

    @property
    def addresses(self) -> tuple[str, str]:
        return self.ipv4, self.ipv6


class Network:
    """Hosts and the router between them. A host's name is the name of the router's link to it: 15 letters at most. Use
    `network`."""

    def __init__(self, names: Sequence[str]) -> None:
        require_root()
        self.router = Namespace("router")
        self.hosts = {name: Host(name, number) for number, name in enumerate(names, 1)}
        self._keeper = Keeper([self.router, *self.hosts.values()])

    def connect(self) -> None:
        self.router.set_kernel(_QUIET | _FORWARDING)
        for host in self.hosts.values():
            self._connect(host)

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    def _connect(self, host: Host) -> None:
        host.set_kernel(_QUIET)
        self.router.run(*f"ip link add name {host.name} type veth peer name {LINK} netns {host.path}".split())
        _address(self.router, host.name, host.gateway4, host.gateway6)
        _address(host, LINK, host.ipv4, host.ipv6)
        routes = (f"route add default via {gateway}\n" for gateway in (host.gateway4, host.gateway6))
        host.run("ip", "-batch", "-", text="".join(routes))

    def close(self) -> None:
        """Everything inside ends, then the namespaces themselves."""
        for each in (*self.hosts.values(), self.router):
            each.close()
        self._keeper.dismiss()


@contextlib.contextmanager
def network(*names: str) -> Iterator[Network]:
    """A network for as long as the block lasts."""
    made = Network(names)
    try:
        made.connect()
        yield made
    finally:
        made.close()


def _address(where: Namespace, link: str, ipv4: str, ipv6: str) -> None:
    """Bring `link` up with both addresses."""
    lines = f"addr add {ipv4}/24 dev {link}\naddr add {ipv6}/64 dev {link} nodad\nlink set {link} up\n"
    where.run("ip", "-batch", "-", text=lines)
