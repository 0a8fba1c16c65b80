"""What goes wrong, each for as long as its block lasts.

Links suffer in the router, so that no host can tell a fault from a bad network; each fault of a link is a table of
nftables or a rule of its own, so that they may be stacked. Nothing here waits for an
effect: that is for conditions.
"""

from __future__ import annotations

import contextlib
import itertools
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.support.netns.clocks import WallClock
from tests.support.netns.network import LINK, Host, Network
from tests.support.processes import Running, running

_numbers = itertools.count(1)


@contextlib.contextmanager
def cut(network: Network, host: Host, other: Host | None = None) -> Iterator[None]:
    """Nothing passes between `host` and `other` (everybody, when left out), and nobody is told: packets vanish."""
    with _dropping(network, *_between(host, other)):
        yield


@contextlib.contextmanager
def unplugged(network: Network, host: Host) -> Iterator[None]:
    """The link of `host` is down, and its kernel knows."""
    network.router.run("ip", "link", "set", host.name, "down")
    try:
        yield
    finally:
        network.router.run("ip", "link", "set", host.name, "up")


@contextlib.contextmanager
def lossy(network: Network, host: Host, percent: int) -> Iterator[None]:
    """Of the packets from and to `host`, so many in a hundred vanish, at random."""
    lost = f"numgen random mod 100 < {percent}"
    with _dropping(network, *(f"{rule} {lost}" for rule in _between(host, None))):
        yield


@contextlib.contextmanager
def narrow(network: Network, host: Host, rate: str) -> Iterator[None]:
    """Both ways of the link carry at most `rate` (such as `256kbit`), with a short queue."""
    shape = f"root tbf rate {rate} burst 16kb latency 200ms"
    places = ((network.router, host.name), (host, LINK))
    for where, link in places:
        where.run(*f"tc qdisc replace dev {link} {shape}".split())
    try:
        yield
    finally:
        for where, link in places:
            where.run(*f"tc qdisc del dev {link} root".split())


@contextlib.contextmanager
def delayed(network: Network, host: Host, seconds: float, folder: Path) -> Iterator[None]:
    """Whatever comes from `host` and goes to it takes `seconds` longer."""
    number = next(_numbers)
    device, router = f"delay{number}", network.router
    words = [sys.executable, "-m", "tests.support.netns.delay", str(seconds), device]
    with router.inside():
        shim = running(words, folder / f"{device}.log")
        with shim as process:
            process.until(lambda: device in router.run("ip", "-br", "link"), "the shim that delays")
            router.run("ip", "link", "set", device, "up")
            with contextlib.ExitStack() as stack:
                for family, address, nets in (("-4", host.ipv4, "0.0.0.0/0"), ("-6", host.ipv6, "::/0")):
                    stack.enter_context(_led_through(network, host, family, address, nets, device, 1000 + number))
                yield


@contextlib.contextmanager
def stopped(process: Running) -> Iterator[None]:
    """SIGSTOP: it is there, keeps its connections, and says nothing."""
    process.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.signal(signal.SIGCONT)


@contextlib.contextmanager
def rewound(clock: WallClock, seconds: int) -> Iterator[None]:
    """A machine's wall clock is set back by `seconds`, under the programs that run there."""
    clock.set(clock.ahead - seconds)
    try:
        yield
    finally:
        clock.set(clock.ahead + seconds)


@contextlib.contextmanager
def _led_through(
    network: Network, host: Host, family: str, address: str, everything: str, device: str, table: int
) -> Iterator[None]:
    """The router sends what comes from `host` or goes to it into `device`; what comes out of it goes on as ever."""
    run = network.router.run
    rules = [f"iif {device} lookup main pref 100", f"iif {host.name} lookup {table} pref 200"]
    rules.append(f"to {address} lookup {table} pref 300")
    run(*f"ip {family} route add {everything} dev {device} table {table}".split())
    for rule in rules:
        run(*f"ip {family} rule add {rule}".split())
    try:
        yield
    finally:
        for rule in rules:
            run(*f"ip {family} rule del {rule}".split())
        run(*f"ip {family} route flush table {table}".split())


def _between(host: Host, other: Host | None) -> tuple[str, str]:
    """What a packet between them matches in the router, each way."""
    if other is None:
        return f'iifname "{host.name}"', f'oifname "{host.name}"'
    return (
        f'iifname "{host.name}" oifname "{other.name}"',
        f'iifname "{other.name}" oifname "{host.name}"',
    )


@contextlib.contextmanager
def _dropping(network: Network, *rules: str) -> Iterator[None]:
    table = f"inet fault{next(_numbers)}"
    lines = [f"add table {table}", f"add chain {table} forward {{ type filter hook forward priority filter; }}"]
    lines += [f"add rule {table} forward {rule} drop" for rule in rules]
    network.router.run("nft", "-f", "-", text="\n".join(lines))
    try:
        yield
    finally:
        network.router.run("nft", "delete", "table", *table.split())
