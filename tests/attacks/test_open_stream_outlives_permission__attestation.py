"""Row "open stream outlives permission" (envoy#14504, tailscale#859), with continuous re-attestation: a real
authority's feed and a real stream through the gateway. Rounds that pass keep it open, and change no fact;
silence cuts it, and so does a quote that fails. The first round may bring the deadline nearer: the stream must not wait
for the old one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from deploy.demo.measured_boot import healthy_boot
from foundation.faults import Fault
from foundation.identity import Heartbeat, PolicyPublished, SnapshotNumbers
from foundation.reasons import Reason
from pki.enrol.judgement import Trust
from pki.tpm.reference import PcrReference, ReferenceValues
from tests.attacks.test_open_stream_outlives_permission import FIRST, Watched
from tests.support.attesting import MAKER, AttestingNode, attesting_node
from tests.support.gateway import DataPlane, RawClient, gateway_to, request_bytes
from tests.support.installation import Installation, installation
from tests.support.soft_tpm import PCRS, SoftTpm

HOLDS = 300
WELL = ReferenceValues("sha256", {0: PcrReference(values=frozenset({SoftTpm(MAKER).values(PCRS)[0]}))})


@dataclass
class Watching:
    """A node with an open stream, before an authority and a gateway that share one time."""

    site: Installation
    plane: DataPlane
    node: AttestingNode
    client: RawClient
    upstream: Watched
    numbers: SnapshotNumbers | None = None

    async def follow(self) -> None:
        """The gateway hears what the authority has committed by now."""
        async with self.site.authority.feed.follow(self.numbers) as changes:
            async for change in changes:
                if not isinstance(change, PolicyPublished):
                    self.plane.store.apply(change)
                if isinstance(change, Heartbeat):
                    self.numbers = change.numbers
                    return

    async def let_pass(self, seconds: float) -> None:
        """Time passes everywhere, but for the last part of a second at a gateway that sweeps four times in it."""
        self.node.tick(seconds)
        self.plane.clock.set_wall(self.site.clock.now() - 1)
        await self.plane.advance(1)
        await self.follow()

    async def has_been_cut(self) -> Reason | None:
        async with asyncio.timeout(15):
            assert await self.client.ended() == b""  # aborted: no last chunk
            await self.upstream.ended.wait()
        assert self.plane.registry.open_count == 0
        reason: Reason | None = self.plane.metrics.answers[-1][1]
        return reason

    def is_open(self) -> bool:
        return self.plane.registry.open_count == 1 and not self.upstream.ended.is_set()


@pytest.fixture(name="watching")
async def _watching(tmp_path: Path) -> AsyncIterator[Watching]:
    upstream = Watched()
    async with (
        installation(tmp_path / "site", trust=Trust(references={"default": WELL})) as site,
        gateway_to(upstream, tmp_path) as plane,
    ):
        node = await attesting_node(site)
        plane.clock.set_wall(site.clock.now())
        watching = Watching(site, plane, node, await plane.connect(), upstream)
        await watching.follow()
        registry = asyncio.create_task(plane.registry.run())
        watching.client.send(request_bytes("GET", "/watch"))
        assert (await watching.client.head())[0] == 200
        assert await watching.client.reader.readexactly(len(FIRST)) == FIRST
        await watching.let_pass(2)
        assert watching.is_open()
        yield watching
        registry.cancel()
        await asyncio.gather(registry, return_exceptions=True)


async def test_rounds_keep_a_stream_open_beyond_every_deadline(watching: Watching) -> None:
    await watching.node.ask()
    await watching.node.push()
    await watching.follow()
    epoch = watching.plane.store.current.inventory[watching.node.caller.id].epoch
    numbers = watching.plane.store.current.numbers
    for _ in range(15):  # three times as long as one quote holds
        await watching.let_pass(60)
        await watching.node.push()
        await watching.follow()
        assert watching.is_open()
    assert watching.plane.store.current.numbers == numbers
    assert watching.plane.store.current.inventory[watching.node.caller.id].epoch == epoch


async def test_silence_cuts_the_stream(watching: Watching) -> None:
    """Enrolment had left the deadline an hour away, and the stream was opened by that."""
    until = (await watching.node.ask()).attested_until
    until = (await watching.node.push()).attested_until
    await watching.follow()
    await watching.let_pass(HOLDS - 10)
    assert watching.is_open()
    await watching.let_pass(20)
    assert watching.site.clock.now() > until
    assert await watching.has_been_cut() is Reason.CUT_BY_DEADLINE
    again = await watching.plane.connect()
    assert (await again.get()).reason == Reason.ATTESTATION_EXPIRED.code
    # Coming back takes one round.
    await watching.node.ask()
    await watching.node.push()
    await watching.follow()
    again = await watching.plane.connect()
    again.send(request_bytes("GET", "/watch"))
    assert (await again.head())[0] == 200


async def test_a_quote_that_fails_cuts_the_stream(watching: Watching) -> None:
    await watching.node.ask()
    await watching.node.push()
    await watching.follow()
    await watching.let_pass(30)
    assert watching.is_open()
    watching.node.tpm.events, watching.node.whole = healthy_boot(firmware="another"), True
    with pytest.raises(Fault) as caught:
        await watching.node.push()
    assert caught.value.reason is Reason.REFERENCE_MISMATCH
    await watching.follow()
    await watching.plane.advance(1)
    assert await watching.has_been_cut() is Reason.CUT_BY_CHANGE
    again = await watching.plane.connect()
    assert (await again.get()).reason == Reason.POSTURE_FAILED.code


async def test_a_delayed_quote_keeps_nothing_open(watching: Watching) -> None:
    """It was made in time, and arrives when its nonce holds no longer."""
    await watching.node.ask()
    held_back = watching.node.message()
    await watching.let_pass(HOLDS + 1)
    assert watching.is_open()
    await watching.node.send(held_back)
    await watching.let_pass(1)
    assert await watching.has_been_cut() in {Reason.CUT_BY_DEADLINE, Reason.CUT_BY_CHANGE}
