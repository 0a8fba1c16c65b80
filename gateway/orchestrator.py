"""Builds every part from the settings, starts them in order, stops them in reverse. `wiring/` says how each is built.

Order: records → authority (here, or the way to it) → facts and policy → data plane → listeners → health. A part that
cannot start stops the start, with its reason. Whatever runs is owned by one task group: when one part fails, all stop.

| role | authority | facts come from | listeners |
|---|---|---|---|
| all | here | its feed, in process | enrolment, API, data plane |
| authority | here | its feed, in process: its API is decided by policy too | enrolment, API |
| gateway | elsewhere | its feed over HTTPS, and what was kept on disk | API of operators, data plane |
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from importlib import metadata
from typing import Any

from foundation import notify
from foundation.faults import Fault
from foundation.first import first_of
from foundation.ports import AuditEvent
from gateway.api.process import Incarnation, ProcessApi
from gateway.errands import Asked, Errand, Errands
from gateway.handover import Handover, try_new_code
from gateway.sockets import Sockets
from gateway.wiring.authority import AuthorityParts, join_authority
from gateway.wiring.base import Base, open_base
from gateway.wiring.gateway import GatewayParts, build_gateway
from gateway.wiring.listeners import Listeners
from gateway.wiring.reload import Reload
from gateway.wiring.settings import Settings

_LOG = logging.getLogger(__name__)


class Orchestrator:
    """The main process of the role that the settings name. `left` is what a main process before it left."""

    def __init__(self, settings: Settings, left: Handover | None = None) -> None:
        self._settings = settings
        self._left = left
        self._sockets = Sockets(left.sockets if left else {})
        self._incarnation = Incarnation(secrets.token_hex(8), os.getpid(), metadata.version("sallyport"))
        self.started = asyncio.Event()

    async def run(self, errands: Errands) -> Handover | None:
        """Start everything, serve, and run `errands`, until they ask to stop or to upgrade; then stop everything. What
        the next main process takes over, in an upgrade. Raises `Fault` when a part cannot start."""
        async with AsyncExitStack() as stack:
            stack.callback(self._sockets.close)
            base, authority, gateway = await self._build(stack)
            background = [base.time.run, gateway.workers.run, gateway.follow, *authority.background]
            if gateway.kept is not None:
                background.append(gateway.kept.run)
            await stack.enter_async_context(_running(*background))
            reload = Reload(self._settings, base, authority, gateway, self._sockets)
            process = ProcessApi(self._incarnation, errands, gateway.workforce, reload.judge)
            listeners = Listeners(self._settings, stack, self._sockets, base, authority, gateway, process)
            if not await self._start(listeners, gateway, errands.stop):
                return None
            return await self._attend(errands, base, gateway, reload)

    async def _build(self, stack: AsyncExitStack) -> tuple[Base, AuthorityParts, GatewayParts]:
        """Everything, in order; nothing serves yet."""
        base = await open_base(self._settings, stack)
        if self._left is None:
            base.forget_workers()
        authority = await join_authority(self._settings, base, stack)
        gateway = build_gateway(self._settings, base, authority, self._sockets, self._left)
        stack.push_async_callback(gateway.shelf.close)
        stack.push_async_callback(gateway.shadow.close)
        return base, authority, gateway

    async def _start(self, listeners: Listeners, gateway: GatewayParts, stop: asyncio.Event) -> bool:
        """Serve, once facts and policy are whole and the workers are ready. Whether it came to that before `stop`."""
        await listeners.open_health(self.started.is_set)
        await first_of(gateway.follower.caught_up.wait(), stop.wait())
        await first_of(gateway.workers.wait_ready(), stop.wait())
        if stop.is_set():
            return False
        await listeners.open()
        self._sockets.close_left()
        gateway.workers.accept()
        _settle_memory()
        self.started.set()
        notify.ready()
        return True

    async def _attend(self, errands: Errands, base: Base, gateway: GatewayParts, reload: Reload) -> Handover | None:
        """Do what is asked while everything serves."""
        while (errand := await errands.next()) is not None:
            notify.reloading()
            doing = reload(errand) if errand.asked is Asked.RELOAD else _try_upgrade(errand, base)
            await first_of(doing, errands.stop.wait())
            if errand.asked is Asked.UPGRADE and not errand.refused and not errands.stop.is_set():
                sequence, workers = await gateway.workers.hand_over()
                return Handover(sequence, self._sockets.duplicates(), workers)
            notify.ready()
        notify.stopping()
        await gateway.workers.drain(reload.settings.plane.processes.drain)
        return None


async def _try_upgrade(errand: Errand, base: Base) -> None:
    """Whether the code that is installed now starts with these settings; audited either way."""
    try:
        await try_new_code()
        await base.audit.append(AuditEvent("upgrade.begun", errand.actor, "process"))
    except Fault as fault:
        _LOG.error("no upgrade: %s", fault)
        errand.done((), fault)
        await base.audit.append(AuditEvent("upgrade.refused", errand.actor, "process", fault.reason.code))


def _settle_memory() -> None:
    """What was made by now stays. The garbage collector need not look through it again: that would stop every
    connection for as long as it takes."""
    gc.collect()
    gc.freeze()


@asynccontextmanager
async def _running(*parts: Callable[[], Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    """Run `parts` for as long as the block does. When one fails, the block is cancelled and the failure raised."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(part()) for part in parts]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
