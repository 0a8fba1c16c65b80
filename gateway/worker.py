"""One worker: a process that carries the data plane, and does what the main process orders over its channel.

Laws held here:
- it accepts nothing before it has the whole present state, and only from the sockets that it is told;
- a change is acknowledged once it is in force: what it revokes is cut by then;
- when the main process is gone, it accepts no more, lets what is under way end, and ends;
- of the main process's world it imports nothing: no authority, no API, no database.

It is started with the numbers of its descriptors: the channel, then the listening sockets.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from foundation.clock import SystemClock
from foundation.decisionlog.folders import worker_folder
from foundation.decisionlog.log import DecisionLog
from foundation.decisionlog.masking import Mask
from foundation.decisionlog.settings import DecisionLogSettings
from foundation.faults import Fault
from foundation.identity import Heartbeat, PolicyPublished
from foundation.logs import configure_logging
from foundation.reasons import Reason
from foundation.telemetry import Telemetry
from foundation.tls import KeyPair
from foundation.trusttime import TrustTime
from gateway.channel import Channel
from gateway.collecting import collect_seldom
from gateway.configuration import parse_configuration
from gateway.control import (
    LAST_WORD,
    Acknowledged,
    Answered,
    Ask,
    Beat,
    Changed,
    Configure,
    Configured,
    Drain,
    Enforce,
    Failed,
    Forget,
    Frames,
    Listen,
    Load,
    Loaded,
    Message,
    NotLoaded,
    Renewed,
    SegmentFull,
)
from gateway.enforce import load_part
from gateway.identity import Certificates
from gateway.merging import dump
from gateway.metrics import GatewayMetrics
from gateway.plane import MASK_KEY, Plane, PlaneSettings, build_plane
from gateway.snapshot import PolicyPart
from gateway.upstreams.telling import encode

LEAST_SEGMENT_BYTES = 64 << 10
SEVERING_SECONDS = 0.01
_LOG = logging.getLogger(__name__)


class Worker:
    """One worker's life. `listening` are the sockets it may be told to accept from."""

    def __init__(self, listening: list[socket.socket]) -> None:
        self._listening = listening
        self._channel: Channel | None = None
        self._configure: asyncio.Future[Configure] = asyncio.get_running_loop().create_future()
        self._over = asyncio.Event()
        self._ending = Drain(0.0, 0.0)
        self._duties: Duties | None = None

    async def run(self, end: socket.socket) -> None:
        """Serve until told to drain, or left alone. Raises `Fault`."""
        self._channel = channel = await Channel.open(end, Frames.of_orders(), self._take, self._left_alone)
        for number in (
            signal.SIGINT,
            signal.SIGHUP,
            signal.SIGUSR2,
        ):  # a terminal sends them to all; the main process's word counts
            asyncio.get_running_loop().add_signal_handler(number, _nothing)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._end, None)
        try:
            await self._serve(channel)
        except Fault as fault:
            channel.send(Failed(fault.reason.code, fault.detail, fault.field))
            await channel.wait_taken()
            raise
        finally:
            channel.close()

    async def _serve(self, channel: Channel) -> None:
        order = await self._configure
        settings = PlaneSettings.parse(parse_configuration(order.settings.encode(), Path(order.path))).share(order.of)
        configure_logging(settings.telemetry.log_level)
        async with AsyncExitStack() as stack:
            time = TrustTime(SystemClock(), None, order.now)
            certificates = Certificates(
                KeyPair(Path(order.certificate), Path(order.key)), Path(order.root), settings.protocols
            )
            certificates.load()
            mask = Mask.open(settings.system.state / MASK_KEY)
            plane = await _open_plane(stack, settings, order, certificates, time, channel, mask)
            self._duties = Duties(settings, plane, certificates, time, channel, self._listening, mask)
            stack.push_async_callback(self._duties.close)
            channel.send(Configured())
            async with asyncio.TaskGroup() as group:
                chores = [group.create_task(plane.registry.run()), group.create_task(collect_seldom(time))]
                if plane.access is not None:
                    chores.append(group.create_task(plane.access.run()))
                if plane.broker is not None:
                    chores.append(group.create_task(plane.broker.run()))
                await self._over.wait()
                await plane.listener.drain(self._ending.seconds, self._ending.grace)
                for chore in chores:
                    chore.cancel()
            channel.send(Answered(LAST_WORD, dump(plane.telemetry.registry)))

    def _take(self, message: Message) -> None:
        if isinstance(message, Configure):
            self._configure.set_result(message)
        elif isinstance(message, Drain):
            self._end(message)
        elif self._duties is None:
            raise Fault(Reason.MESSAGE_MALFORMED, "an order before the first", field="control")
        else:
            self._duties.take(message)

    def _end(self, order: Drain | None) -> None:
        """Nobody comes back from that: the sockets are let go, so that a new main process can have the address."""
        self._ending = order or self._ending_by_settings()
        if self._duties is not None:
            self._duties.stop_listening()
        for each in self._listening:
            each.close()
        self._over.set()
        if not self._configure.done():
            self._configure.set_exception(Fault(Reason.DRAINING))

    def _ending_by_settings(self) -> Drain:
        return Drain(self._duties.settings.processes.drain if self._duties else 0.0, 0.0)

    def _left_alone(self, fault: Fault | None) -> None:
        """Nobody tells us any more what is revoked."""
        if not self._over.is_set():
            _LOG.warning("the main process is gone%s", f": {fault}" if fault else "")
            self._end(None)


async def _open_plane(
    stack: AsyncExitStack,
    settings: PlaneSettings,
    order: Configure,
    certificates: Certificates,
    time: TrustTime,
    channel: Channel,
    mask: Mask,
) -> Plane:
    telemetry = Telemetry(settings.telemetry)
    stack.callback(telemetry.close)
    metrics = GatewayMetrics(telemetry.registry)
    own = _own_log(settings.decisions, order)
    log = await DecisionLog.open(own, time, _Reported(channel), metrics.dropped, mask)
    stack.push_async_callback(log.close)
    plane = build_plane(settings, certificates, time, log, telemetry, metrics, order.number)
    stack.push_async_callback(plane.upstreams.close)
    if plane.broker is not None:
        await plane.broker.listen(plane.services, plane.listener.connections)
        stack.push_async_callback(plane.broker.close)
    stack.push_async_callback(plane.listener.close)
    return plane


def _own_log(settings: DecisionLogSettings, order: Configure) -> DecisionLogSettings:
    """A folder of our own, and segments so small that all workers' open ones fit in a quarter of the bound."""
    fair = max(LEAST_SEGMENT_BYTES, settings.total_bytes // (4 * (order.of + 1)))
    folder = worker_folder(settings.directory, order.number)
    return replace(settings, directory=folder, segment_bytes=min(settings.segment_bytes, fair))


class _Reported:
    """Implements `foundation.decisionlog.closing.Closer`: the main process closes what we report."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    async def mend(self, folder: Path) -> None:
        """The main process did, before we were started."""

    def submit(self, path: Path) -> None:
        self._channel.send(SegmentFull(path.name.partition(".")[0]))

    async def finish(self) -> None:
        await self._channel.wait_taken()


class Duties:
    """What the main process may order of a worker whose plane is built."""

    def __init__(
        self,
        settings: PlaneSettings,
        plane: Plane,
        certificates: Certificates,
        time: TrustTime,
        channel: Channel,
        listening: list[socket.socket],
        mask: Mask,
    ) -> None:
        self.settings = settings
        self._plane = plane
        self._certificates = certificates
        self._time = time
        self._channel = channel
        self._listening = listening
        self._mask = mask
        self._sequence = 0
        self._done = 0
        self._severing = False
        self._telling = False
        self._parts: dict[int, PolicyPart] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._questions: dict[str, Callable[[bytes], bytes]] = {
            "metrics": lambda _: dump(plane.telemetry.registry),
            "note": lambda _: plane.cuts.note().encode(),
            "upstreams": lambda _: encode(plane.upstreams.overview()),
            "open": lambda _: b"%d %d" % (plane.registry.open_count, plane.registry.cut_count),
        }

    def take(self, order: Message) -> None:
        """Do as told. Raises `Fault` for what cannot be; then nothing that follows may be trusted."""
        match order:
            case Changed():
                self._change(order)
            case Load():
                self._spawn(self._load(order))
            case Enforce():
                self._enforce(order)
            case Forget():
                self._drop(self._parts.pop(order.revision, None))
            case Listen():
                self.listen(order.sockets)
            case Beat():
                self._time.heard(order.now)
                self._acknowledge()
            case Renewed():
                self._renew()
            case Ask():
                self._channel.send(Answered(order.number, self._questions[order.question](order.body)))
            case _:
                raise Fault(Reason.MESSAGE_MALFORMED, "no order", field="control")

    def listen(self, places: tuple[int, ...]) -> None:
        """Accept from these sockets, and no others."""
        self._plane.listener.start(*(self._listening[place] for place in places))
        if places:
            gc.freeze()  # what was made by now stays: the collector need not look through it again

    def stop_listening(self) -> None:
        """Take whoever waits at our sockets, then nobody any more."""
        self._plane.listener.stop_listening()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _change(self, order: Changed) -> None:
        if isinstance(order.change, Heartbeat):
            self._time.heard(order.change.at)
        self._plane.store.apply(order.change)
        self._in_force(order.sequence)

    def _enforce(self, order: Enforce) -> None:
        before = self._plane.store.current.policy
        if before is None or before.revision != order.revision:
            part = self._parts.pop(order.revision, None)
            if part is None:
                raise Fault(Reason.REVISION_MISSING, f"revision {order.revision} was not loaded", field="control")
            self._plane.store.publish_policy(part)
            self._drop(before)
        self._in_force(order.sequence)

    def _in_force(self, sequence: int) -> None:
        """Tell so with the next turn: whatever was cut is closed by then."""
        self._sequence = max(self._sequence, sequence)
        if not self._telling:
            self._telling = True
            asyncio.get_running_loop().call_soon(self._acknowledge)

    def _acknowledge(self) -> None:
        """What is in force. While a withdrawal is still cutting that is what was before it; saying so tells that we
        live."""
        self._telling = False
        if not self._plane.registry.is_severing:
            self._done = self._sequence
        elif not self._severing:
            self._severing = True
            asyncio.get_running_loop().call_later(SEVERING_SECONDS, self._look_again)
        self._channel.send(Acknowledged(self._done))

    def _look_again(self) -> None:
        self._severing = False
        self._acknowledge()

    async def _load(self, order: Load) -> None:
        present = self._plane.store.current.policy
        if order.revision not in self._parts and (present is None or present.revision != order.revision):
            published = PolicyPublished(order.revision, order.bundle, order.at)
            try:
                self._parts[order.revision] = await load_part(published, order.key, self.settings.policy, self._mask)
            except Fault as fault:
                self._channel.send(NotLoaded(order.revision, fault.reason.code, str(fault)[:1000]))
                return
        self._channel.send(Loaded(order.revision))

    def _drop(self, part: PolicyPart | None) -> None:
        if part is not None:
            self._spawn(part.engine.close())

    def _renew(self) -> None:
        try:
            self._certificates.load()
        except Fault as fault:
            _LOG.error("the new certificate is not used: %s", fault)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _nothing() -> None:
    pass


def _inherited(words: list[str]) -> list[socket.socket]:
    """The sockets at these descriptors; everything else that came along is closed."""
    numbers = [int(word) for word in words]
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in numbers:
            try:
                os.close(int(name))
            except OSError:  # the listing's own
                continue
    return [socket.socket(fileno=number) for number in numbers]


def main() -> None:
    """The process."""
    import uvloop  # noqa: PLC0415  # nobody who imports this module for its parts needs it

    end, *listening = _inherited(sys.argv[1:])
    configure_logging("info")

    async def run() -> None:
        await Worker(listening).run(end)

    try:
        uvloop.run(run())
    except Fault as fault:
        _LOG.error("this worker ends: %s", fault)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
