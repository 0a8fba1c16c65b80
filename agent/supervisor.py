"""Supervises the services of this node that the settings name: starts them, restarts them, reports them.

Laws held here:
- a service is an argument list, run by no shell; it gets an environment of its own, never the agent's;
- it runs in a process group of its own, without new privileges and without the agent's capabilities; when its first
  process ends, or the agent stops, the whole group is ended, and when the agent is killed, so is that process;
- the group is signalled while its first process, alive or not yet reaped, still holds its number: never a stranger's;
- each line of output is bounded, and goes to the agent's log as text.

When it starts again is judged in `agent/restarts.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager

from agent import restarts
from agent.readings import read_text
from agent.restarts import Life
from agent.supervised import Lines, ServiceSettings, command_line, environment
from foundation.clock import Clock
from foundation.faults import Fault

_READ_BYTES = 16 * 1024
_LAST_WORDS_SECONDS = 1.0
_log = logging.getLogger("sallyport.agent.service")

Draw = Callable[[], float]
"""A number from [0, 1), for jitter."""


class Supervisor:
    """All services. `run` until cancelled; then every one of them is ended."""

    def __init__(self, services: tuple[ServiceSettings, ...], clock: Clock, draw: Draw) -> None:
        self._services = tuple(Service(each, clock, draw) for each in services)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for service in self._services:
                group.create_task(service.run())
            await asyncio.Event().wait()

    def versions(self) -> Mapping[str, str]:
        """What each service that tells its version said when it was started last."""
        return {service.name: service.version for service in self._services if service.version}

    def lives(self) -> Mapping[str, Life]:
        """What is known of each service, by its name."""
        return {service.name: service.life for service in self._services}


class Service:
    """One service."""

    def __init__(self, settings: ServiceSettings, clock: Clock, draw: Draw) -> None:
        self.name = settings.name
        self.life = Life()
        self.version = ""
        self._settings = settings
        self._clock = clock
        self._draw = draw

    async def run(self) -> None:
        """Keep it running until cancelled; then end it."""
        try:
            while True:
                self.life = restarts.starting(self.life, self._clock.monotonic())
                self.version = _version(self._settings)
                how = await self._live()
                self._back_off(how)
                await self._clock.sleep(self.life.pause)
        finally:
            self.life = restarts.stopped(self.life, self._clock.monotonic())

    async def _live(self) -> str:
        """How it ended, or why it did not start."""
        try:
            async with _spawned(self._settings) as process:
                self.life = restarts.running(self.life, self._clock.monotonic())
                await process.wait_ended()
        except (Fault, OSError) as error:
            return f"not started: {error}"
        return process.how_it_ended

    def _back_off(self, how: str) -> None:
        at, policy = self._clock.monotonic(), self._settings.restart
        self.life = restarts.backing_off(self.life, policy, how, at, self._draw())
        ended = {"service": self.name, "how": how, "failures": self.life.failures, "pause": round(self.life.pause, 3)}
        _log.warning("a service ended and starts again", extra=ended)


class _Process:
    """A started service's first process and its group. Nobody else reaps it, so its number stays its own until then."""

    def __init__(self, settings: ServiceSettings, popen: subprocess.Popen[bytes], pidfd: int) -> None:
        self._settings = settings
        self._popen = popen
        self._pidfd = pidfd

    @property
    def how_it_ended(self) -> str:
        """Once it is reaped."""
        status = self._popen.returncode
        return f"exit {status}" if status >= 0 else f"killed by {_signal_name(-status)}"

    async def wait_ended(self) -> None:
        """Wait until the first process has ended; it is not reaped by that."""
        ended, loop = asyncio.Event(), asyncio.get_running_loop()
        loop.add_reader(self._pidfd, ended.set)  # a process's descriptor is readable once it has ended (pidfd_open(2))
        try:
            await ended.wait()
        finally:
            loop.remove_reader(self._pidfd)

    async def end(self) -> None:
        """End what is left of the group: politely, and after the stop's time-out by force. Cancelling hastens it."""
        try:
            if not self._has_ended():
                self._signal(signal.SIGTERM)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._settings.stop):
                        await self.wait_ended()
        finally:
            self._signal(signal.SIGKILL)
            await self.wait_ended()
            self._popen.wait()  # returns at once
            os.close(self._pidfd)

    def _has_ended(self) -> bool:
        return os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # nobody left; one that changed its user
            os.killpg(self._popen.pid, number)


def _version(settings: ServiceSettings) -> str:
    return next(iter(read_text(settings.version).splitlines()), "").strip() if settings.version else ""


@asynccontextmanager
async def _spawned(settings: ServiceSettings) -> AsyncIterator[_Process]:
    """The service, started; at the block's end the whole of it is gone. Raises `OSError` or `Fault`."""
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    with _closing(reading):
        with _closing(writing):
            os.set_blocking(writing, True)
            popen = _popen(settings, writing)
        process = _Process(settings, popen, os.pidfd_open(popen.pid))
        talk = asyncio.create_task(_log_lines(settings.name, reading))
        try:
            yield process
        finally:
            try:
                await process.end()
            finally:
                await _finish(talk)


def _popen(settings: ServiceSettings, output: int) -> subprocess.Popen[bytes]:
    # From the thread of the event loop: the death signal is tied to the thread that starts a process (prctl(2)).
    return subprocess.Popen(  # noqa: S603  # an argument list of the node's own settings
        command_line(settings),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=environment(settings),
        cwd=settings.directory,
        start_new_session=True,
    )


async def _finish(talk: asyncio.Task[None]) -> None:
    """Read what was said last; somebody outside the group who still holds the pipe is not waited for."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LAST_WORDS_SECONDS):
            await asyncio.shield(talk)
    talk.cancel()
    await asyncio.gather(talk, return_exceptions=True)


async def _log_lines(name: str, reading: int) -> None:
    lines = Lines()
    async for chunk in _chunks(reading):
        for line in lines.feed(chunk):
            _log.info("%s", line, extra={"service": name})
    for line in lines.end():
        _log.info("%s", line, extra={"service": name})


async def _chunks(reading: int) -> AsyncIterator[bytes]:
    """What comes through a pipe, until its end."""
    readable, loop = asyncio.Event(), asyncio.get_running_loop()
    loop.add_reader(reading, readable.set)
    try:
        while True:
            await readable.wait()
            readable.clear()
            try:
                chunk = os.read(reading, _READ_BYTES)
            except BlockingIOError:
                continue
            if not chunk:
                return
            yield chunk
    finally:
        loop.remove_reader(reading)


@contextlib.contextmanager
def _closing(descriptor: int) -> Iterator[None]:
    try:
        yield
    finally:
        os.close(descriptor)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
