"""Which gateways hold a node's tunnel, told to each other over hot state.

Laws held here:
- what this process holds stands in its own memory; hot state is told of it, in batches, and told again after every
  loss: without hot state nothing is found at others, and what is here goes on;
- a process is alive as long as its heartbeat is there; with the heartbeat all that it claimed is void, at once;
- who was silent for too long, or whose heartbeat was lost, tells everything again: others may have gone past it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import secrets
from collections.abc import Iterable, Sequence

from foundation.clock import Clock
from foundation.faults import Fault
from foundation.first import first_of
from foundation.hotstate import HotState, Swap
from foundation.identifiers import SpiffeId
from gateway.broker.claims import Claim, decode, encode, living, with_claim, without_claims_of

BEAT_SECONDS = 1.0
ALIVE_SECONDS = 3.0  # after its last beat, a process counts as gone
ENTRY_SECONDS = 3600.0
REFRESH_SECONDS = 1200.0
BATCH = 128  # entries read and swapped at once
PAUSE_SECONDS = 0.25  # after hot state did not answer
_LOG = logging.getLogger(__name__)


class Presence:
    """The tunnels of one process. Keep `run` running; `claim` and `release` only note, and cost no round trip."""

    def __init__(self, hot: HotState, time: Clock, gateway: SpiffeId, relay: str) -> None:
        """`relay` is where other gateways reach this one, `host:port`."""
        self.incarnation = secrets.token_hex(16)
        self._hot = hot
        self._time = time
        self._gateway = gateway
        self._relay = relay
        self._held: dict[SpiffeId, int] = {}
        self._untold: dict[SpiffeId, None] = {}  # in the order of telling
        self._outdone: dict[SpiffeId, None] = {}  # told, and somebody newer stood there
        self._next_beat = self._next_refresh = time.monotonic()
        self._noted = asyncio.Event()
        self._answers = True

    def claim(self, node: SpiffeId, epoch: int) -> None:
        """This process holds the tunnel of `node`, by the claim of this epoch in the gateway's own table."""
        self._held[node] = epoch
        self._tell(node)

    def release(self, node: SpiffeId, epoch: int) -> None:
        """That claim is over. Nothing where there is a newer one."""
        if self._held.get(node) == epoch:
            del self._held[node]
            self._tell(node)

    async def find(self, node: SpiffeId) -> tuple[Claim, ...]:
        """Who holds a tunnel of `node`, as far as others can know: this gateway first. Raises
        `Fault(HOT_STATE_UNAVAILABLE)`. A claim may be over by the time it is used: who is asked compares its epoch."""
        claims = decode(await self._hot.get(_entry(node)))
        return living(claims, await self._alive(claims), self._gateway)

    async def run(self) -> None:
        """Tell what is to be told, for ever. When it ends, so does all that was claimed."""
        try:
            while True:
                await self.step()
                await self._wait()
        finally:
            with contextlib.suppress(Fault):
                await self._hot.delete(_beat(self.incarnation))

    async def step(self) -> None:
        """One beat when it is time, and one batch of what is untold."""
        try:
            if self._time.monotonic() >= self._next_beat:
                await self._send_beat()
            await self._tell_batch(tuple(itertools.islice(self._untold, BATCH)))
            self._note_answer(None)
        except Fault as fault:
            self._note_answer(fault)

    # --- telling --------------------------------------------------------------------------------------------

    def _tell(self, node: SpiffeId) -> None:
        self._outdone.pop(node, None)
        self._untold[node] = None
        self._noted.set()

    async def _wait(self) -> None:
        """Until there is something to do: a beat, or what is untold."""
        if not self._answers:
            await self._time.sleep(PAUSE_SECONDS)
        elif not self._untold:
            self._noted.clear()
            await first_of(self._noted.wait(), self._time.sleep(max(0.0, self._next_beat - self._time.monotonic())))
        else:
            await asyncio.sleep(0)

    async def _send_beat(self) -> None:
        """A beat that is not there any more was lost with everything else, or came too late for others."""
        beat = _beat(self.incarnation)
        [lives] = await self._hot.swap([Swap(beat, b"1", b"1")], ALIVE_SECONDS)
        if not lives:
            await self._hot.put_once(beat, b"1", ALIVE_SECONDS)
        now = self._time.monotonic()
        if not lives or now >= self._next_refresh:
            self._untold = dict.fromkeys((*self._untold, *self._held))
            self._next_refresh = now + REFRESH_SECONDS
        self._untold |= self._outdone
        self._outdone = {}
        self._next_beat = now + BEAT_SECONDS

    async def _tell_batch(self, nodes: Sequence[SpiffeId]) -> None:
        """Those whose entry was changed by somebody else meanwhile stay untold."""
        if not nodes:
            return
        told = {node: self._held.get(node) for node in nodes}
        before = await self._hot.get_many([_entry(node) for node in nodes])
        claims = dict(zip(nodes, map(decode, before), strict=True))
        alive = await self._alive(itertools.chain.from_iterable(claims.values()))
        swaps = {
            node: Swap(_entry(node), raw, after)
            for node, raw in zip(nodes, before, strict=True)
            if (after := self._changed(node, told[node], claims[node], alive)) is not None or raw is not None
        }
        done = dict(zip(swaps, await self._hot.swap(list(swaps.values()), ENTRY_SECONDS), strict=True))
        for node in nodes:
            if done.get(node, True) and self._held.get(node) == told[node]:
                self._untold.pop(node, None)

    def _changed(
        self, node: SpiffeId, epoch: int | None, claims: Sequence[Claim], alive: frozenset[str]
    ) -> bytes | None:
        """What the entry of `node` is to say."""
        if epoch is not None:
            own = Claim(self._gateway, self._relay, self.incarnation, epoch)
            with_own = with_claim(claims, own, alive)
            if with_own is not None:
                return encode(with_own)
            self._outdone[node] = None
        return encode(without_claims_of(claims, self.incarnation, alive))

    async def _alive(self, claims: Iterable[Claim]) -> frozenset[str]:
        names = sorted({claim.incarnation for claim in claims})
        found: list[str] = []
        for first in range(0, len(names), BATCH):
            some = names[first : first + BATCH]
            beats = await self._hot.get_many([_beat(name) for name in some])
            found += [name for name, beat in zip(some, beats, strict=True) if beat is not None]
        return frozenset(found)

    def _note_answer(self, fault: Fault | None) -> None:
        if fault is not None and self._answers:
            _LOG.error("other gateways do not hear which tunnels are here: %s", fault)
        elif fault is None and not self._answers:
            _LOG.warning("other gateways hear again which tunnels are here")
        self._answers = fault is None


def _entry(node: SpiffeId) -> str:
    return f"tunnel/{node}"


def _beat(incarnation: str) -> str:
    return f"gateway-process/{incarnation}"
