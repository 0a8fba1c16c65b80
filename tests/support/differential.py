"""The differential method: what a gateway passes on of any bytes, every real server behind it takes for exactly what
was authorised.

For each mutant the gateway refuses, or forwards; what it forwards is in its one plain form (`StrictUpstream`), and is
what the decision's record says. Those bytes, with one request behind them that would show a server out of step, go to
each server: it must have understood those requests and no other, in that order. A server may refuse (some know fewer
methods or names); what it may not do is see something else.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import logging
import random
import re
import secrets
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.driven import DrivenGateway, Outcome, driven_gateway
from tests.support.http2_mutation import http2_mutants
from tests.support.mutation import HOST, message, mutants, pieces
from tests.support.peers_behind import Message, PeerBehind, peers_behind

_SENTINEL = Message("GET", "/sentinel", HOST.decode(), b"")
_SENTINEL_BYTES = message(b"GET", b"/sentinel")
_OUR_OWN = re.compile(rb"(?<=\r\n)(x-sallyport-decision|traceparent): [^\r]*\r\n")


@dataclass
class Tally:
    """What was tried, so that a test can require that it was not nothing."""

    cases: int = 0
    refused: int = 0
    forwarded: int = 0
    unfinished: int = 0
    compared: Counter[str] = field(default_factory=Counter)
    instead: Counter[str] = field(default_factory=Counter)


class Differential:
    """A gateway, and the servers that stand behind it."""

    def __init__(self, gateway: DrivenGateway, peers: list[PeerBehind]) -> None:
        self._gateway = gateway
        self._peers = peers
        self._known: set[bytes] = set()
        self.tally = Tally()

    async def run(self, cases: Iterable[bytes], seed: int) -> Tally:
        """Try every case. Raises `AssertionError` that shows the case's bytes."""
        chance = random.Random(seed)
        for raw in cases:
            try:
                await self._try(pieces(chance, raw))
            except AssertionError as error:
                raise AssertionError(f"{error}\nthe client sent {raw!r}") from None
        await self._probe()
        return self.tally

    async def run_http2(self, connections: Iterable[bytes], seed: int) -> Tally:
        """The same for whole HTTP/2 connections of one request each: what they become as HTTP/1.1."""
        chance = random.Random(seed)
        for raw in connections:
            try:
                await self._judge(await self._gateway.feed(pieces(chance, raw), "h2"))
            except AssertionError as error:
                raise AssertionError(f"{error}\nthe client sent {raw!r}") from None
        await self._probe()
        return self.tally

    async def _try(self, parts: list[bytes]) -> None:
        outcome = await self._gateway.feed(parts)
        await self._judge(outcome)
        if outcome.messages and not outcome.rest:
            await self._compare_instead(b"".join(parts) + _SENTINEL_BYTES)

    async def _judge(self, outcome: Outcome) -> None:
        tally = self.tally
        tally.cases += 1
        tally.refused += not outcome.messages and not outcome.rest
        tally.forwarded += bool(outcome.messages)
        tally.unfinished += bool(outcome.rest)
        check_authorised(outcome)
        key = _OUR_OWN.sub(b"", outcome.raw + outcome.rest)
        if key and key not in self._known:
            self._known.add(key)
            await asyncio.gather(*(self._behind(peer, outcome) for peer in self._peers))

    async def _behind(self, peer: PeerBehind, outcome: Outcome) -> None:
        """What is not whole must not be taken for a request; the next case, or the probe, would find it."""
        expected, raw = [each for each, _ in outcome.messages], outcome.raw
        if outcome.rest:
            raw += outcome.rest
        elif b"\r\nconnection: upgrade\r\n" not in raw:  # behind an upgrade nothing is sent before it is answered
            expected.append(_SENTINEL)
            raw += _SENTINEL_BYTES
        before = len(peer.understood)
        statuses = await peer.take(raw, len(expected))
        understood = peer.understood[before:]
        assert understood == expected[: len(understood)], f"{peer.name} understood {understood} of {raw!r}"
        if len(understood) < len(expected):  # these know no upgrade
            assert b"\r\nconnection: upgrade\r\n" in raw, f"{peer.name} answered {statuses} to {raw!r}"
        self.tally.compared[peer.name] += 1

    async def _compare_instead(self, raw: bytes) -> None:
        """What we accept to the last byte, another server that accepts it reads in the same way: so whoever stands in
        front of a gateway, or beside it, agrees with it."""
        outcome = await self._gateway.feed([raw])
        expected = [each for each, _ in outcome.messages]
        if expected[-1:] == [_SENTINEL] and len(expected) == len(outcome.decided):
            await asyncio.gather(*(self._instead(peer, expected, raw) for peer in self._peers))

    async def _instead(self, peer: PeerBehind, expected: list[Message], raw: bytes) -> None:
        before = len(peer.understood)
        await peer.take(raw, len(expected))
        understood = [each._replace(host=each.host.lower()) for each in peer.understood[before:]]
        assert _is_part(understood, expected), f"{peer.name} itself understood {understood}"
        self.tally.instead[peer.name] += understood == expected

    async def _probe(self) -> None:
        """Nothing that came late was understood as a request."""
        for peer in self._peers:
            before = len(peer.understood)
            await peer.take(_SENTINEL_BYTES, 1)
            assert peer.understood[before:] == [_SENTINEL], f"{peer.name} understood {peer.understood[before:]}"


def _is_part(some: list[Message], whole: list[Message]) -> bool:
    """Whether `some` is `whole` with some left out."""
    left = iter(whole)
    return all(each in left for each in some)


def check_authorised(outcome: Outcome) -> None:
    """What went upstream is what the records say was permitted, in that order."""
    permitted = [entry for entry in outcome.decided if entry.allow]
    assert len(permitted) >= len(outcome.messages) + bool(outcome.rest), "something was forwarded undecided"
    for entry, (forwarded, _) in zip(permitted, outcome.messages, strict=False):
        assert (entry.method, entry.target) == (forwarded.method, forwarded.target)
        assert entry.input is not None
        asked = json.loads(entry.input)["request"]
        assert forwarded.host.rpartition(":")[0] in {asked["host"], ""} or forwarded.host == asked["host"]
        assert asked["method"] == forwarded.method


@contextlib.asynccontextmanager
async def differential(folder: Path) -> AsyncIterator[Differential]:
    """Gateway and servers, started."""
    async with peers_behind(folder) as peers, driven_gateway(folder, upgrades=("websocket",)) as gateway:
        yield Differential(gateway, peers)


async def _search(cases: int, seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with differential(Path(folder)) as method:
            await method.run(itertools.islice(mutants(seed), cases), seed)
            print(await method.run_http2(itertools.islice(http2_mutants(seed), cases // 4), seed))


def main() -> None:
    """A long run: `python -m tests.support.differential --cases 300000 --seed 7`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=300_000)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 32))
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)  # servers tell of every request that they refuse
    print(f"{arguments.cases} mutants of seed {arguments.seed}")
    asyncio.run(_search(arguments.cases, arguments.seed))


if __name__ == "__main__":
    main()
