"""The services of this node that gateways ask for: checked by the node's own signed revision, then dialled.

Laws held here:
- nothing is dialled before the check has passed, so that a service sees not one packet of a caller who is refused; and
  it is asked again once the service is connected, and of every open stream when what this node offers has changed;
- without a check nothing is served: it fails closed;
- streams are bounded in all and by caller.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from agent.datagrams import DatagramSplice
from agent.settings import Address
from agent.splice import Room, Splice
from foundation.clock import Clock
from foundation.faults import Fault
from foundation.fields import Fields
from foundation.identifiers import SpiffeId, check_name
from foundation.reasons import Reason
from foundation.tunnel import Stream
from foundation.wire.streams import MAX_SERVICES, StreamAnswer, StreamCall, StreamRefusal

_log = logging.getLogger("sallyport.agent.services")
_LOOK = 4  # times in `idle` that somebody looks which datagrams nobody sends any more

Check = Callable[[StreamCall], Reason | None]
"""Why this node refuses the stream; None when it takes it."""


@dataclass(frozen=True, slots=True)
class Service:
    """Where a service listens: `tcp` or `udp` at `address`, or a Unix socket at `path`."""

    protocol: str
    address: Address | None = None
    path: str = ""

    @classmethod
    def parse(cls, text: str, path: str) -> Service:
        """`tcp://host:port`, `udp://host:port` or `unix:/path`. Raises `Fault(SETTING_INVALID)`."""
        if text.startswith("unix:/"):
            return cls("tcp", path=text.removeprefix("unix:"))
        protocol, separator, rest = text.partition("://")
        if not separator or protocol not in ("tcp", "udp"):
            raise Fault(Reason.SETTING_INVALID, "expected tcp://host:port, udp://host:port or unix:/path", field=path)
        return cls(protocol, Address.parse(rest, path))


def parse_offers(fields: Fields) -> dict[str, Service]:
    """`[agent.offers]`: the services that there are by name, and where they listen. Raises `Fault(SETTING_INVALID)`."""
    rows, path = fields.mapping("offers", {}, most=MAX_SERVICES), f"{fields.path}.offers"
    return {check_name(name, field=path): Service.parse(text, f"{path}.{name}") for name, text in rows.items()}


@dataclass(frozen=True, slots=True)
class ServingSettings:
    """Section `[agent.serving]`. `streams` bounds those that others have open here, `per_caller` those of one
    identity; `connect` is how long a service may take to answer, `idle` ends datagrams that nobody sends any more;
    seconds."""

    streams: int = 1024
    per_caller: int = 256
    connect: float = 5.0
    idle: float = 60.0

    @classmethod
    def parse(cls, fields: Fields) -> ServingSettings:
        """Raises `Fault(SETTING_INVALID | SETTING_UNKNOWN)`."""
        settings = cls(
            streams=fields.integer("streams", 1024, least=1, most=4096),
            per_caller=fields.integer("per_caller", 256, least=1, most=4096),
            connect=fields.duration("connect", "5s"),
            idle=fields.duration("idle", "60s"),
        )
        if not settings.idle or not settings.connect:
            raise fields.fault("idle", "`idle` and `connect` are above zero")
        fields.finish()
        return settings


@dataclass(eq=False)
class _Caller:
    """One stream that a gateway asked for, from the request to its end. As the stream's user it waits for `task`."""

    stream: Stream
    call: StreamCall
    task: asyncio.Task[None] | None = None
    joined: Splice | DatagramSplice | None = None

    def break_off(self, reason: Reason) -> None:
        if self.joined is not None:
            self.joined.break_off(reason)
            return
        self.stream.reset(reason)
        self.over(reason)

    def accepted(self, document: bytes) -> None: ...

    def refused(self, document: bytes) -> None: ...

    def received(self, data: bytes) -> None: ...

    def datagram_received(self, data: bytes) -> None: ...

    def sent(self, size: int) -> None: ...

    def ended(self) -> None: ...

    def over(self, reason: Reason) -> None:
        """The gateway has lost interest while we dial."""
        if self.task is not None:
            self.task.cancel()


@dataclass
class _Counts:
    """Streams since the start: those that were joined, and those that were refused, by reason."""

    joined: int = 0
    refused: Counter[str] = field(default_factory=Counter)


class Services:
    """`check` is set by whoever has the signed revision; until then all are refused."""

    def __init__(self, services: Mapping[str, Service], settings: ServingSettings, clock: Clock) -> None:
        self.check: Check = refuse_all
        self.is_draining = False
        self._services = dict(services)
        self._settings = settings
        self._clock = clock
        self._room = Room(clock)
        self._callers: set[_Caller] = set()
        self._by_source: Counter[SpiffeId] = Counter()
        self._counts = _Counts()
        self._dialling: asyncio.TaskGroup | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self._services))

    async def run(self) -> None:
        """Dial what is asked for until cancelled."""
        try:
            async with asyncio.TaskGroup() as self._dialling:
                while True:
                    await self._clock.sleep(self._settings.idle / _LOOK)
                    self._end_idle()
        finally:
            self._dialling = None

    def status(self) -> dict[str, Any]:
        """What is offered, and how many use it."""
        return {
            "services": list(self.names),
            "open": len(self._callers),
            "joined": self._counts.joined,
            "refused": dict(self._counts.refused),
        }

    def use(self, services: Mapping[str, Service]) -> None:
        """Serve these from now on."""
        before, self._services = self._services, dict(services)
        self.offers_changed(lambda call: before[call.service] != services.get(call.service))

    def offers_changed(self, has_moved: Callable[[StreamCall], bool] = lambda call: False) -> None:
        """Break off whatever is open and is refused from now on, or whose service `has_moved`."""
        for caller in list(self._callers):
            reason = Reason.SERVICE_NOT_OFFERED if has_moved(caller.call) else self.check(caller.call)
            if reason is not None:
                _log.info("stream of %s to %s is cut: %s", caller.call.source, caller.call.service, reason.code)
                caller.break_off(reason)

    # --- the tunnel's side ------------------------------------------------------------------------------------

    def requested(self, stream: Stream, document: bytes) -> None:
        """A gateway asks. Raises `Fault(MESSAGE_MALFORMED)`, which ends its tunnel."""
        call = StreamCall.parse(document)
        reason = self._refusal(call)
        service = self._services.get(call.service)
        if reason is None and (service is None or (service.protocol == "udp") is not (call.protocol == "udp")):
            reason = Reason.SERVICE_NOT_OFFERED
        if reason is not None or service is None or self._dialling is None:
            self._refuse(stream, call, reason or Reason.DRAINING)
            return
        caller = _Caller(stream, call)
        stream.user = caller
        self._callers.add(caller)
        self._by_source[call.source] += 1
        caller.task = self._dialling.create_task(self._join(caller, service))

    def _refusal(self, call: StreamCall) -> Reason | None:
        if self.is_draining or self._dialling is None:
            return Reason.DRAINING
        if len(self._callers) >= self._settings.streams:
            return Reason.OVERLOADED
        if self._by_source[call.source] >= self._settings.per_caller:
            return Reason.STREAM_LIMIT
        return self.check(call)

    def _refuse(self, stream: Stream, call: StreamCall, reason: Reason) -> None:
        self._counts.refused[reason.code] += 1
        _log.info(
            "stream of %s to %s is refused: %s",
            call.source,
            call.service,
            reason.code,
            extra={"route": call.route, "revision": call.revision, "decision": call.decision},
        )
        stream.refuse(StreamRefusal(reason, call.decision).encode())

    async def _join(self, caller: _Caller, service: Service) -> None:
        """Dial, and accept as soon as the service is connected."""
        try:
            async with asyncio.timeout(self._settings.connect):
                await (self._dial_udp if service.protocol == "udp" else self._dial)(caller, service)
        except (OSError, TimeoutError) as error:
            _log.warning("service %s cannot be reached: %s", caller.call.service, error.__class__.__name__)
            if caller.joined is None:
                self._refuse(caller.stream, caller.call, Reason.SERVICE_UNREACHABLE)
            self._give_up(caller, Reason.SERVICE_UNREACHABLE)
        except BaseException:
            self._give_up(caller, Reason.DRAINING)
            raise

    def _give_up(self, caller: _Caller, reason: Reason) -> None:
        caller.stream.reset(reason)  # says nothing where it is over
        if caller.joined is not None:
            caller.joined.over(reason)
        self._forget(caller)

    async def _dial(self, caller: _Caller, service: Service) -> None:
        loop = asyncio.get_running_loop()
        splice = Splice(
            caller.stream,
            self._room,
            lambda: self._forget(caller),
            connected=lambda: self._accept(caller, splice),
        )
        if service.address is None:
            await loop.create_unix_connection(lambda: splice, service.path)
        else:
            await loop.create_connection(lambda: splice, service.address.host, service.address.port)

    async def _dial_udp(self, caller: _Caller, service: Service) -> None:
        address = cast(Address, service.address)  # a Unix socket is of protocol tcp
        await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: _Correspondent(self, caller, self._clock), remote_addr=(address.host, address.port)
        )

    def _accept(self, caller: _Caller, joined: Splice | DatagramSplice) -> bool:
        """The service is connected: whether the stream may still come."""
        reason = self.check(caller.call)
        if reason is not None:
            self._refuse(caller.stream, caller.call, reason)
        if not caller.stream.is_open:
            return False
        caller.joined = joined
        caller.stream.accept(joined, StreamAnswer(caller.call.decision).encode())
        self._counts.joined += 1
        return True

    def _forget(self, caller: _Caller) -> None:
        if caller in self._callers:
            self._callers.remove(caller)
            self._by_source[caller.call.source] -= 1
            if not self._by_source[caller.call.source]:
                del self._by_source[caller.call.source]

    def _end_idle(self) -> None:
        now = self._clock.monotonic()
        for caller in list(self._callers):
            joined = caller.joined
            if isinstance(joined, DatagramSplice) and now - joined.used_at >= self._settings.idle:
                joined.end()


class _Correspondent(asyncio.DatagramProtocol):
    """The connected socket to a service of UDP."""

    def __init__(self, services: Services, caller: _Caller, clock: Clock) -> None:
        self._services = services
        self._caller = caller
        self._clock = clock
        self._splice: DatagramSplice | None = None
        self._takes = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        connection = cast(asyncio.DatagramTransport, transport)

        def deliver(data: bytes) -> None:
            if self._takes and not connection.is_closing():
                connection.sendto(data)

        self._splice = DatagramSplice(self._caller.stream, deliver, transport.close, self._clock)
        if not self._services._accept(self._caller, self._splice):
            transport.close()

    def datagram_received(self, data: bytes, addr: Any) -> None:
        if self._splice is not None:
            self._splice.send(data)

    def error_received(self, exc: Exception) -> None:
        """Nobody listens there now; that may change."""

    def connection_lost(self, exc: Exception | None) -> None:
        self._services._forget(self._caller)

    def pause_writing(self) -> None:
        self._takes = False

    def resume_writing(self) -> None:
        self._takes = True


def refuse_all(call: StreamCall) -> Reason | None:
    """Without a signed revision nothing is offered."""
    return Reason.REVISION_MISSING
