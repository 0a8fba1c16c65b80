"""A node's way to its authority through its tunnel, so that nothing but tunnels need leave a node.

Laws held here:
- it leads to the one address in the settings, and nowhere else;
- no policy is asked: the authority judges for itself, over TLS that ends there, and this gateway sees none of it. But
  who gets no tunnel gets no byte through, and a revocation cuts what is open;
- it is for calls, not for traffic: so many at a time for each node, and each for a bounded time.
"""

from __future__ import annotations

import asyncio
from collections import Counter

from foundation.faults import Fault
from foundation.identifiers import SpiffeId
from foundation.reasons import Reason
from foundation.tunnel import Stream
from foundation.wire.streams import StreamAnswer, StreamRefusal
from gateway.broker.transport import StreamTransport
from gateway.proxy.identify import Caller
from gateway.proxy.services import ConnectionServices
from gateway.streams.registry import Exchange

AT_ONCE = 8  # of one node
MOST_SECONDS = 120.0
CONNECT_SECONDS = 5.0


class AuthorityCalls:
    """Those of one worker."""

    def __init__(self, address: str) -> None:
        """`address` is that of the authority's API, `host:port`."""
        host, _, port = address.rpartition(":")
        self._host, self._port = host.strip("[]"), int(port)
        self._open: Counter[SpiffeId] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, services: ConnectionServices, caller: Caller, near: Stream) -> None:
        """Take the stream, and lead it there. Raises `Fault(STREAM_LIMIT)`."""
        if self._open[caller.peer.id] >= AT_ONCE:
            raise Fault(Reason.STREAM_LIMIT, f"at most {AT_ONCE} calls of one node to the authority")
        task = asyncio.get_running_loop().create_task(self._lead(services, caller, near))
        self._open[caller.peer.id] += 1
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._over(done, caller.peer.id))

    async def close(self) -> None:
        """End all of them."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _over(self, task: asyncio.Task[None], node: SpiffeId) -> None:
        self._tasks.discard(task)
        self._open[node] -= 1
        if not self._open[node]:
            del self._open[node]

    async def _lead(self, services: ConnectionServices, caller: Caller, near: Stream) -> None:
        over = asyncio.Event()
        here, there = _Half(over), _Half(over)
        here.other, there.other = there, here

        def cut(reason: Reason) -> None:
            for half in (here, there):
                half.abort()

        guard = Exchange(caller.peer, cut)
        services.registry.register(guard)
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await asyncio.get_running_loop().create_connection(lambda: there, self._host, self._port)
            transport = StreamTransport(here)
            near.accept(transport, StreamAnswer().encode())
            transport.attach(near)
            async with asyncio.timeout(MOST_SECONDS):
                await over.wait()
        except OSError:  # a time-out among them
            if here.transport is None:
                near.refuse(StreamRefusal(Reason.UPSTREAM_UNREACHABLE).encode())
        finally:
            services.registry.leave(guard)
            for half in (here, there):
                half.end()


class _Half(asyncio.Protocol):
    """One of two connections, what comes by one of which goes out by the other."""

    def __init__(self, over: asyncio.Event) -> None:
        """`over` is set with the end of either."""
        self.other: _Half
        self.transport: asyncio.Transport | None = None
        self._over = over

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # uvloop's are not of the class

    def data_received(self, data: bytes) -> None:
        if self.other.transport is not None:
            self.other.transport.write(data)

    def pause_writing(self) -> None:
        if self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other.transport is not None:
            self.other.transport.resume_reading()

    def eof_received(self) -> bool:
        if self.other.transport is not None:
            self.other.transport.close()
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        self._over.set()

    def abort(self) -> None:
        """End it now."""
        if self.transport is not None:
            self.transport.abort()
        self._over.set()

    def end(self) -> None:
        """Let what was written leave, then end."""
        if self.transport is not None:
            self.transport.close()
