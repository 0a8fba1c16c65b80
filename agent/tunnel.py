"""The tunnels of a node: one to each gateway that its settings name, kept for as long as the agent runs.

Laws held here:
- a gateway that is lost costs the streams that it carried and no others; it is dialled again after a pause that grows
  (`agent.backoff`), and a tunnel that did not stand long counts as one that failed;
- a tunnel that drains, or whose certificate was renewed, is followed by a new one before it ends; its streams go on;
- a stream is asked for at one gateway after the other, and only where the one before could not say yes or no.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import ssl
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from agent.backoff import pause, spread
from agent.channel import Refusal
from agent.link import Link, Served, unreachable
from agent.settings import Address
from foundation.clock import Clock
from foundation.faults import Fault
from foundation.fields import Fields
from foundation.first import first_of
from foundation.reasons import Reason
from foundation.tunnel import Stream, StreamUser
from foundation.wire.streams import Hello, StreamAnswer, StreamRefusal, StreamRequest

_log = logging.getLogger("sallyport.agent.tunnel")
SOFTWARE = "sallyport-agent/1"
_ELSEWHERE = frozenset({Reason.STREAM_LIMIT, Reason.REVISION_DOWNGRADE})
_UNAVAILABLE = 503
_FOLLOWS = 30.0  # seconds within which a gateway that was behind has followed

Take = Callable[[Stream, StreamAnswer], StreamUser]
"""Told of a stream that was accepted, before anything of it comes; says who uses it."""
Draw = Callable[[], float]


@dataclass(frozen=True, slots=True)
class TunnelSettings:
    """Section `[agent.tunnel]`; all in seconds. `connect` bounds a dial up to the gateway's greeting, `ping` is how
    often a sign of life is asked for, `silence` how long there may be none, `answer` how long a gateway may take to
    answer for a stream, `steady` how long a tunnel has to stand to count as one that did, `retire` how long an old one
    may go on for its streams beside the new."""

    connect: float = 10.0
    ping: float = 10.0
    silence: float = 25.0
    answer: float = 10.0
    steady: float = 10.0
    retire: float = 3600.0

    @classmethod
    def parse(cls, fields: Fields) -> TunnelSettings:
        """Raises `Fault(SETTING_INVALID | SETTING_UNKNOWN)`."""
        settings = cls(
            connect=fields.duration("connect", "10s"),
            ping=fields.duration("ping", "10s"),
            silence=fields.duration("silence", "25s"),
            answer=fields.duration("answer", "10s"),
            steady=fields.duration("steady", "10s"),
            retire=fields.duration("retire", "1h"),
        )
        if settings.silence <= settings.ping * 1.25 or not settings.ping:
            raise fields.fault("silence", "has to be longer than `ping` and a quarter of it, which is above zero")
        fields.finish()
        return settings


class Credentials(Protocol):
    """What this node proves itself with, at any time the newest."""

    @property
    def trust_domain(self) -> str: ...

    async def context(self) -> ssl.SSLContext:
        """For a dial now. Raises `Fault(TPM_UNAVAILABLE | TLS_KEY_UNUSABLE)`."""
        ...

    def explain(self, fault: Fault) -> Fault:
        """What is behind a failed handshake, where the key knows more."""
        ...


class NodeTunnel:
    """The tunnel to one gateway. `failures` counts dials in a row that came to nothing."""

    def __init__(
        self,
        gateway: Address,
        settings: TunnelSettings,
        credentials: Credentials,
        served: Served,
        clock: Clock,
        *,
        floor: Callable[[], int],
        came_up: Callable[[], None],
        draw: Draw,
    ) -> None:
        self.gateway = gateway
        self.link: Link | None = None
        self.failures = 0
        self.fault: Fault | None = None
        self._settings = settings
        self._credentials = credentials
        self._served = served
        self._clock = clock
        self._floor = floor
        self._came_up = came_up
        self._draw = draw
        self._old: set[Link] = set()
        self._again = asyncio.Event()  # a new connection is due, though this one is up
        self._leaving = False
        self._behind_until = 0.0

    @property
    def is_up(self) -> bool:
        return self.link is not None and self.link.is_up

    @property
    def is_behind(self) -> bool:
        """Whether the gateway, when it greeted us a moment ago, enforced a revision below what this node has had. It
        follows soon, and says so to nobody."""
        return self._clock.monotonic() < self._behind_until

    @property
    def links(self) -> tuple[Link, ...]:
        """The connection in use first, then those that end with their streams."""
        return (*((self.link,) if self.link is not None else ()), *self._old)

    def renew(self) -> None:
        """Follow with a new connection, by the newest certificate; the old one ends with its streams."""
        self._again.set()

    def leave(self) -> None:
        """The gateway is not wanted any more: `run` returns when the last stream has ended."""
        self._leaving = True
        self._again.set()

    async def run(self) -> None:
        """Keep the tunnel until cancelled; then all of it is gone."""
        try:
            async with asyncio.TaskGroup() as keepers:
                while not self._leaving:
                    await self._stand(keepers)
                    if not self._leaving:
                        await self._clock.sleep(pause(self.failures, self._draw()))
                self._supersede(self.link)
                self.link = None
        finally:
            for link in self.links:
                if link.tunnel.streams:
                    link.abort(Fault(Reason.DRAINING))
                else:
                    link.close()

    async def _stand(self, keepers: asyncio.TaskGroup) -> None:
        """Dial; return when another connection is due."""
        self._again.clear()
        try:
            link = await self._dial()
        except Fault as fault:
            self._failed(fault)
            return
        since = self._clock.monotonic()
        self._take_over(link)
        keeper = keepers.create_task(self._keep(link))
        try:
            await self._until_due(link)
        finally:
            if link.lost.is_set():
                keeper.cancel()
        self.failures = 0 if self._clock.monotonic() - since >= self._settings.steady else self.failures + 1

    async def _dial(self) -> Link:
        """A connection that has greeted us. Raises `Fault`."""
        context = await self._credentials.context()
        hello = Hello(SOFTWARE, self._served.names)
        link = Link(self.gateway, self._credentials.trust_domain, hello, self._served, self._clock)
        try:
            async with asyncio.timeout(self._settings.connect):
                await asyncio.get_running_loop().create_connection(
                    lambda: link, self.gateway.host, self.gateway.port, ssl=context
                )
                await link.ready
        except (OSError, ssl.SSLError, TimeoutError) as error:
            link.abort(Fault(Reason.SERVER_UNREACHABLE))
            raise self._credentials.explain(unreachable(self.gateway, error)) from error
        except BaseException:
            link.abort(Fault(Reason.SERVER_UNREACHABLE))
            raise
        return link

    def _failed(self, fault: Fault) -> None:
        if self.fault is None or self.fault.reason is not fault.reason:
            _log.warning("no tunnel to %s: %s", self.gateway, fault, extra={"internal": fault.internal})
        self.fault = fault
        self.failures += 1

    def _take_over(self, link: Link) -> None:
        self._supersede(self.link)
        self.link, self.fault = link, None
        _log.info("tunnel to %s is up, revision %d", self.gateway, link.hello.revision)
        self._behind_until = 0.0
        if link.hello.revision < self._floor():
            self._behind_until = self._clock.monotonic() + _FOLLOWS
            _log.warning(
                "%s enforces revision %d, this node has had %d", self.gateway, link.hello.revision, self._floor()
            )
        self._came_up()

    def _supersede(self, old: Link | None) -> None:
        """`old` takes no new streams and ends with the last that it has."""
        if old is not None and not old.lost.is_set():
            old.superseded_at = self._clock.monotonic()
            old.tunnel.drain()
            self._old.add(old)

    async def _until_due(self, link: Link) -> None:
        """Wait until `link` is lost, takes no more streams, or a renewed certificate wants another."""
        link.on_draining = self._again.set
        if link.is_draining:
            return
        await first_of(link.lost.wait(), self._again.wait())
        if link.lost.is_set():
            _log.warning("tunnel to %s is lost: %s", self.gateway, link.fault or "it was closed")
            self.link = None

    async def _keep(self, link: Link) -> None:
        """Ask for signs of life until it is lost; end it once it is old and has no streams."""
        while not link.lost.is_set():
            await self._clock.sleep(spread(self._settings.ping, self._draw()))
            now = self._clock.monotonic()
            if now - link.tunnel.heard_at >= self._settings.silence:
                link.abort(Fault(Reason.TUNNEL_LOST, f"nothing was heard for {self._settings.silence:g} s"))
            elif link.superseded_at is not None and not link.tunnel.streams:
                link.close()
            elif link.superseded_at is not None and now - link.superseded_at >= self._settings.retire:
                link.abort(Fault(Reason.DRAINING, "its streams had their time"))
            else:
                link.tunnel.ping()
        self._old.discard(link)


class Tunnels:
    """All of them."""

    def __init__(
        self,
        gateways: Sequence[Address],
        settings: TunnelSettings,
        credentials: Credentials,
        served: Served,
        clock: Clock,
        *,
        floor: Callable[[], int] = lambda: 0,
        draw: Draw = random.random,  # spreads load, guards nothing
    ) -> None:
        """`floor` is the highest policy revision that this node has had."""
        self._settings = settings
        self._up = asyncio.Event()
        self._make: Callable[[Address], NodeTunnel] = lambda gateway: NodeTunnel(
            gateway, settings, credentials, served, clock, floor=floor, came_up=self._up.set, draw=draw
        )
        self._tunnels: dict[Address, NodeTunnel] = {}
        self._running: set[NodeTunnel] = set()  # those that are left and still have streams among them
        self._group: asyncio.TaskGroup | None = None
        self.use(gateways)

    @property
    def tunnels(self) -> tuple[NodeTunnel, ...]:
        """Those that are wanted, in the order of the settings."""
        return tuple(self._tunnels.values())

    def use(self, gateways: Sequence[Address]) -> None:
        """Keep tunnels to these from now on. Streams over others go on until they end."""
        before, self._tunnels = self._tunnels, {}
        for gateway in gateways:
            kept = before.pop(gateway, None)
            self._tunnels[gateway] = kept or self._make(gateway)
            if kept is None and self._group is not None:
                self._start(self._group, self._tunnels[gateway])
        for tunnel in before.values():
            tunnel.leave()

    async def run(self) -> None:
        """Keep them until cancelled."""
        try:
            async with asyncio.TaskGroup() as self._group:
                for tunnel in self.tunnels:
                    self._start(self._group, tunnel)
                await asyncio.Event().wait()
        finally:
            self._group = None

    def _start(self, group: asyncio.TaskGroup, tunnel: NodeTunnel) -> None:
        self._running.add(tunnel)
        group.create_task(tunnel.run()).add_done_callback(lambda _task: self._running.discard(tunnel))

    def renew(self) -> None:
        """The node has a new certificate."""
        for tunnel in self.tunnels:
            tunnel.renew()

    def drain(self) -> None:
        """Take no new streams any more."""
        for link in self._links():
            link.tunnel.drain()

    @property
    def is_up(self) -> bool:
        """Whether any gateway can be asked for a stream."""
        return any(tunnel.is_up for tunnel in self.tunnels)

    @property
    def stream_count(self) -> int:
        return sum(link.tunnel.state.open_count for link in self._links())

    async def open(self, request: StreamRequest, take: Take) -> Stream:
        """A stream that was accepted. `take` is told before anything of it comes. Raises `Fault`: a gateway's
        `Refusal`, or `SERVER_UNREACHABLE` when none is connected or none answers in time."""
        fault = Fault(Reason.SERVER_UNREACHABLE, "no gateway is connected")
        if not self.is_up:
            await self._wait_until_up()
        for tunnel in sorted(self.tunnels, key=lambda each: each.is_behind):
            link = tunnel.link
            if link is None or not link.is_up:
                continue
            try:
                return await self._ask(link, request, take)
            except Fault as refused:
                if not may_ask_another(refused.reason):
                    raise
                fault = refused
        raise fault

    def status(self) -> list[dict[str, Any]]:
        """Of each gateway: its address, how its tunnel stands, its streams."""
        return [_status(tunnel) for tunnel in self.tunnels]

    def _links(self) -> Iterator[Link]:
        for tunnel in self._running:
            yield from tunnel.links

    async def _wait_until_up(self) -> None:
        """A gateway that was killed is back in a moment: wait for one, but not for long."""
        self._up.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.answer):
                await self._up.wait()

    async def _ask(self, link: Link, request: StreamRequest, take: Take) -> Stream:
        asking = _Asking(take)
        stream = asking.stream = link.tunnel.open(asking, request.encode())
        try:
            async with asyncio.timeout(self._settings.answer):
                return await asking.answer
        except BaseException as error:
            stream.reset(Reason.STREAM_ABORTED)  # says nothing where the other side has refused
            if isinstance(error, TimeoutError):
                raise Fault(Reason.SERVER_UNREACHABLE, f"{link.gateway} does not answer for the stream") from None
            raise


class _Asking:
    """Uses a stream until it is answered."""

    def __init__(self, take: Take) -> None:
        self.stream: Stream
        self.answer: asyncio.Future[Stream] = asyncio.get_running_loop().create_future()
        self._take = take

    def accepted(self, document: bytes) -> None:
        answer = StreamAnswer.parse(document)
        if self.answer.done():  # nobody waits any more
            self.stream.reset(Reason.STREAM_ABORTED)
            return
        self.stream.user = self._take(self.stream, answer)
        self.answer.set_result(self.stream)

    def refused(self, document: bytes) -> None:
        refusal = StreamRefusal.parse(document)
        self._fail(Refusal(refusal.reason, "", decision=refusal.decision))

    def over(self, reason: Reason) -> None:
        self._fail(Fault(reason))

    def received(self, data: bytes) -> None: ...

    def datagram_received(self, data: bytes) -> None: ...

    def sent(self, size: int) -> None: ...

    def ended(self) -> None: ...

    def _fail(self, fault: Fault) -> None:
        if not self.answer.done():
            self.answer.set_exception(fault)


def may_ask_another(reason: Reason) -> bool:
    """Whether another gateway may answer otherwise: the one that was asked could not decide, or could not join."""
    return reason.status == _UNAVAILABLE or reason in _ELSEWHERE


def _status(tunnel: NodeTunnel) -> dict[str, Any]:
    link = tunnel.link
    return {
        "gateway": str(tunnel.gateway),
        "up": tunnel.is_up,
        "streams": sum(each.tunnel.state.open_count for each in tunnel.links),
        "connections": len(tunnel.links),
        "revision": link.hello.revision if link is not None else 0,
        "behind": tunnel.is_behind,
        "failures": tunnel.failures,
        "fault": "" if tunnel.fault is None else str(tunnel.fault),
    }
