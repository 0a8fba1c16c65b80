"""Keeps the node's firewall as it should be: sets it, follows new revisions, and mends what was changed beside it.

Laws held here:
- the table is replaced in one step, and only when it is not as it should be; where that cannot be told, it is;
- when the agent stops, or does not know what should be, the table stays: what was blocked stays blocked;
- what should be is kept on disk, so that it is in force after a boot before anybody was asked.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from agent.firewall.drift import differences, is_framed
from agent.firewall.nft import Nft
from agent.firewall.ruleset import Object, refill, removal, replacement, ruleset
from agent.firewall.settings import FirewallSettings
from agent.firewall.wall import MAX_WALL_BYTES, Network, Wall, parsed
from agent.settings import AgentSettings
from foundation.clock import Clock
from foundation.faults import Fault
from foundation.fields import Fields
from foundation.files import make_private_folder, read_bounded, write_secret
from foundation.reasons import Reason
from foundation.wire.health import Firewall as Standing

KEPT = "firewall.json"
"""What should be, in the node's folder."""
TOLD_SECONDS = 60.0
"""How long a drift that was mended is still told of: longer than health takes to look."""
RESOLVE_SECONDS = 300.0
_RESOLVING = 5.0
_MAX_ADDRESSES = 16
_log = logging.getLogger("sallyport.agent.firewall")

MAX_TOLD_DIFFERENCES, MAX_TOLD = 16, 256  # on record
Networks = Callable[[], tuple[Network, ...] | None]
"""Those of the newest signed revision; None while there is none. Raises `Fault`."""
Resolve = Callable[[str], Awaitable[tuple[Network, ...]]]
"""The addresses of a host. Raises `OSError`."""


Record = Callable[[str, dict[str, Any]], None]


def _unrecorded(event: str, detail: dict[str, Any]) -> None: ...


class Firewall:
    """Make one with where policy's networks come from and the hosts of gateways and authority, and keep `run` running.
    `folder` is the node's."""

    def __init__(
        self,
        settings: FirewallSettings,
        networks: Networks,
        hosts: Sequence[str],
        folder: Path,
        clock: Clock,
        nft: Nft | None = None,
        resolve: Resolve | None = None,
        record: Record = _unrecorded,
    ) -> None:
        """`record` puts what happened on the node's record."""
        self._settings = settings
        self._record = record
        self._networks = networks
        self._hosts = Hosts(hosts, clock, resolve or resolved)
        self._folder = folder
        self._clock = clock
        self._nft = nft or Nft(settings.nft)
        self._wall: Wall | None = None
        self._is_set = False
        self._fault: str = ""
        self._told_until = 0.0

    def standing(self) -> Standing:
        """For the health report. Drifted means also that the table cannot be set or read."""
        if not self._settings.enabled or (self._wall is None and not self._fault):
            return Standing.OFF
        if self._fault or self._clock.monotonic() < self._told_until:
            return Standing.DRIFTED
        return Standing.IN_FORCE if self._is_set else Standing.OFF

    async def run(self) -> None:
        """Until cancelled; the table stays then."""
        if not self._settings.enabled:
            await asyncio.Event().wait()
        await self.resume()
        while True:
            await self.look()
            await self._clock.sleep(self._settings.interval)

    async def resume(self) -> None:
        """Put what was kept in force, and ask nobody."""
        try:
            wall = await asyncio.to_thread(kept, self._folder)
            if wall is not None:
                await self._hold(wall)
        except Fault as fault:
            self._note(str(fault))

    async def look(self) -> None:
        """Find out what should be, compare, mend. Where it cannot be found out, what was goes on to be held."""
        faults, wall = [], self._wall
        try:
            wall = await self._wanted()
        except Fault as fault:
            faults.append(str(fault))
        try:
            if wall is not None:
                await self._hold(wall)
        except Fault as fault:
            faults.append(str(fault))
        self._note("; ".join(faults))

    async def _wanted(self) -> Wall | None:
        """None while nobody has said which networks are the nodes'."""
        networks = self._networks()
        if networks is None:
            if self._wall is None and not self._settings.networks:
                return None
            networks = self._wall.nodes if self._wall is not None else ()
        before = self._wall.reach if self._wall is not None else ()
        nodes = parsed(map(str, (*networks, *self._settings.networks)))
        return Wall(nodes, await self._hosts.addresses(before), self._settings.allow)

    async def _hold(self, wall: Wall) -> None:
        is_new, is_other = wall != self._wall or not self._is_set, wall != self._wall
        self._wall = wall
        found = await enforce(self._nft, wall)
        if found:
            self._tell(found, is_new)
        self._is_set = bool(wall.nodes)
        if is_other:
            await asyncio.to_thread(keep, self._folder, wall)

    def _tell(self, found: Sequence[str], is_new: bool) -> None:
        if is_new:
            _log.info("the firewall is set", extra={"differences": list(found)})
            return
        _log.warning("the firewall was changed beside the agent; it is set anew", extra={"differences": list(found)})
        self._told_until = self._clock.monotonic() + TOLD_SECONDS
        self._record("firewall.drifted", {"differences": [each[:MAX_TOLD] for each in found[:MAX_TOLD_DIFFERENCES]]})

    def _note(self, fault: str) -> None:
        if fault and fault != self._fault:
            _log.error("the firewall is not as it should be: %s", fault)
        self._fault = fault


class Hosts:
    """Where gateways and authority are: addresses as they stand, names as they resolve."""

    def __init__(self, hosts: Sequence[str], clock: Clock, resolve: Resolve) -> None:
        self._literal = tuple(each for host in hosts for each in _literal(host))
        self._names = tuple(dict.fromkeys(host for host in hosts if not _literal(host)))
        self._clock = clock
        self._resolve = resolve
        self._found: dict[str, tuple[Network, ...]] = {}
        self._due = 0.0

    async def addresses(self, before: Iterable[Network]) -> tuple[Network, ...]:
        """All of them. A name that does not resolve is where it was; `before` is where everybody was when none of them
        is known yet."""
        if self._names and (self._clock.monotonic() >= self._due or len(self._found) < len(self._names)):
            await self._ask()
        unknown = [name for name in self._names if name not in self._found]
        found = (*self._literal, *(each for addresses in self._found.values() for each in addresses))
        return parsed(map(str, (*found, *(before if unknown else ()))))

    async def _ask(self) -> None:
        for name in self._names:
            try:
                async with asyncio.timeout(_RESOLVING):
                    self._found[name] = (await self._resolve(name))[:_MAX_ADDRESSES]
            except (OSError, TimeoutError) as error:
                _log.warning("%s does not resolve: %s", name, error)
        self._due = self._clock.monotonic() + RESOLVE_SECONDS


async def resolved(host: str) -> tuple[Network, ...]:
    """The addresses of `host`, by the system's resolver. Raises `OSError`."""
    found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return parsed(str(address[0]).partition("%")[0] for *_, address in found)


async def enforce(nft: Nft, wall: Wall) -> tuple[str, ...]:
    """Make the table `wall`'s, in one step; what was not so before. Raises `Fault`."""
    listed, found = await compared(nft, wall)
    if found:
        await nft.execute(_commands(wall, listed))
        if left := (await compared(nft, wall))[1]:
            raise Fault(Reason.FIREWALL_REFUSED, "; ".join(left))
    return found


async def compared(nft: Nft, wall: Wall) -> tuple[tuple[Object, ...] | None, tuple[str, ...]]:
    """The table, and how it differs from `wall`'s. One that cannot be read is as good as none, and differs."""
    try:
        listed = await nft.listed()
        if not wall.nodes:
            return listed, () if listed is None else ("there is a table, and no networks of nodes",)
        return listed, ("the table is missing",) if listed is None else differences(ruleset(wall), listed)
    except Fault as fault:
        return None, (str(fault),)


def _commands(wall: Wall, listed: tuple[Object, ...] | None) -> bytes:
    if not wall.nodes:
        return removal()
    is_there = listed is not None and is_framed(ruleset(wall), listed)
    return refill(wall) if is_there else replacement(wall)


def keep(folder: Path, wall: Wall) -> None:
    """Write down what should be. Blocks. Raises `Fault(FILE_UNREADABLE)`."""
    try:
        make_private_folder(folder)
        write_secret(folder / KEPT, json.dumps(wall.to_json()).encode())
    except OSError as error:
        raise Fault(Reason.FILE_UNREADABLE, error.strerror or "cannot be written", field=str(folder / KEPT)) from error


def kept(folder: Path) -> Wall | None:
    """What should be, as last written down; None where nothing was. Raises `Fault`."""
    file = folder / KEPT
    if not file.exists():
        return None
    raw = read_bounded(file, MAX_WALL_BYTES)
    return Wall.parse(Fields.from_json(raw, KEPT, Reason.FIREWALL_NETWORK, max_bytes=MAX_WALL_BYTES))


def forget(folder: Path) -> None:
    """Keep nothing of what should be. Raises `Fault(FILE_UNREADABLE)`."""
    try:
        (folder / KEPT).unlink(missing_ok=True)
    except OSError as error:
        raise Fault(Reason.FILE_UNREADABLE, error.strerror or "cannot be removed", field=str(folder / KEPT)) from error


def hosts_of(node: AgentSettings) -> tuple[str, ...]:
    """The hosts that a node must go on to reach."""
    named = (node.authority, node.renewal, node.gateway, *node.gateways)
    return tuple(dict.fromkeys(address.host for address in named if address is not None))


def _literal(host: str) -> tuple[Network, ...]:
    try:
        return (ipaddress.ip_network(ipaddress.ip_address(host)),)
    except ValueError:
        return ()
