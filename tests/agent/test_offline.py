"""The whole of it: a node with a TPM, its authority over real listeners, and what the node does while that is away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from agent.authority import AuthorityApi
from agent.bundle import Bundles, BundleSettings
from agent.enrol import enrol
from agent.keys import client_context, stored_key
from agent.local import LocalDecisions, Question, answer_document
from agent.outbox import Outbox
from agent.sealed_file import TpmLock, Vault
from agent.settings import Address, AgentSettings
from agent.store import NodeStore
from agent.tpm import Tpm
from foundation.decisionlog.ids import DecisionIds
from foundation.faults import Fault
from foundation.fields import Fields
from foundation.reasons import Reason
from foundation.trusttime import TrustTime
from foundation.wire.bundle import BundleTerms, NodeBundle
from foundation.wire.records import Receipt, RecordBatch, RecordKind
from pki.inventory import Description
from policies.settings import PolicySettings
from policies.signing import load_signing_key
from policies.wasm import WasmEngine
from tests.support.agent import EagerClock, quiet
from tests.support.bundles import archive
from tests.support.installation import Installation, installation
from tests.support.swtpm import EmulatedTpm, TpmMaker, maker, swtpm

__all__ = ["maker", "swtpm"]  # fixtures

TERMS = BundleTerms(refresh=60, stale_after=300, expired_after=1800)


@dataclass
class OfflineNode:
    """A node's parts that go on by themselves. `where` is the authority's API, None while it is away."""

    site: Installation
    folder: Path
    tpm: Tpm
    outbox: Outbox
    where: Address | None = None
    asked: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        identity = NodeStore(self.folder).identity()
        self._context = client_context(identity, stored_key(identity.key, self.tpm))
        self.time = TrustTime.open(self.folder / "trust-time", self.site.clock)
        vault = Vault(self.folder, TpmLock(self.tpm, BundleSettings().selection))
        self.bundles = Bundles(self.site.id("edge-1"), self.fetch, vault, self.folder, self.time, self._note)
        roles = {0: frozenset({"reader", "agent"})}
        self.local = LocalDecisions(
            roles,
            lambda compiled: WasmEngine(compiled, PolicySettings(decision_timeout=5.0)),
            lambda decision: self.outbox.add(RecordKind.DECISION, decision),
            DecisionIds(self.time),
            self.time,
        )
        self.bundles.listen(self.local.use)

    def fetch(self, have: int) -> NodeBundle:
        return self._api().bundle(have)

    def deliver(self, batch: RecordBatch) -> Receipt:
        return self._api().deliver(batch)

    def ask(self, route: str = "models", method: str = "GET", path: str = "/models/a") -> dict[str, Any]:
        fields = Fields({"route": route, "method": method, "path": path}, "", Reason.MESSAGE_MALFORMED)
        answer = answer_document(self.local.decide(Question.parse(fields, 0)))
        self.asked.append(answer["decision"])
        return answer

    def valve(self) -> list[str]:
        """The reasons of a critical route's decision."""
        return list(self.ask("valve", "POST", "/valve")["reasons"])

    @asynccontextmanager
    async def reached(self) -> AsyncIterator[None]:
        """The authority answers meanwhile."""
        async with self.site.serving() as self.where:
            yield
        self.where = None

    def _api(self) -> AuthorityApi:
        if self.where is None:
            raise Fault(Reason.SERVER_UNREACHABLE)
        return AuthorityApi(replace(self.where, host="localhost"), lambda: self._context, 10.0)

    def _note(self, what: str, detail: dict[str, Any]) -> None:
        self.outbox.add(RecordKind.AUDIT, {"event": what, **detail})


@asynccontextmanager
async def running(site: Installation, folder: Path, device: EmulatedTpm) -> AsyncIterator[OfflineNode]:
    """The node, from one start to the next."""
    with Tpm(device.tcti) as tpm:
        outbox = Outbox.open(folder / "outbox", site.clock)
        node = OfflineNode(site, folder, tpm, outbox)
        await node.bundles.load()
        task = asyncio.create_task(node.local.run())
        if node.bundles.current is not None:
            await node.local.ready.wait()
        try:
            yield node
        finally:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            outbox.close()


@pytest.fixture
async def site(tmp_path: Path, maker: TpmMaker) -> AsyncIterator[Installation]:
    async with installation(tmp_path / "site", virtual=(maker.root,)) as site:
        site.settings = replace(site.settings, bundle=TERMS)
        key = load_signing_key(site.settings.folder / "policy.key")
        await site.authority.publish_policy(1, archive(1, key), "ada")
        yield site


@pytest.fixture
async def folder(site: Installation, tmp_path: Path, swtpm: EmulatedTpm) -> Path:
    """Of an enrolled node."""
    settings = AgentSettings(directory=tmp_path / "node", tcti=swtpm.tcti, event_log=swtpm.event_log, timeout=10)
    async with site.enrolling() as address:
        settings = replace(settings, authority=address)
        await enrol(settings, await site.token(), NodeStore(settings.directory), EagerClock(), quiet)
    await site.authority.inventory.describe(site.id("edge-1"), Description(roles=("reader", "agent")), "ada")
    return settings.directory


async def reported(site: Installation) -> list[str]:
    """The decisions that the authority has of the node, in order."""
    page = await site.authority.node_records.page(site.id("edge-1"), kind=RecordKind.DECISION, limit=1000)
    return [each.record.body["id"] for each in page]


async def test_a_node_goes_on_while_its_authority_is_away(site: Installation, folder: Path, swtpm: EmulatedTpm) -> None:
    async with running(site, folder, swtpm) as node:
        # 1. The authority is there: a bundle comes, decisions are made, and delivered.
        async with node.reached():
            await node.bundles.refresh()
            await node.local.ready.wait()
            assert node.ask()["allow"] is True
            assert node.valve() == ["granted"]
            await node.outbox.deliver_all(node.deliver)
        assert await reported(site) == node.asked

        # 2. It is away: decisions go on, by the class of the bundle's age.
        await node.bundles.refresh()
        assert (node.bundles.fault is not None, node.ask()["allow"]) == (True, True)
        site.clock.advance(TERMS.stale_after)
        assert (node.ask()["allow"], node.ask()["staleness"]) == (True, "stale")
        assert node.valve() == ["staleness_exceeded"]
    earlier = node.asked

    # 3. The machine boots meanwhile: the bundle opens, and is as old as it was.
    swtpm.shut_down()
    swtpm.boot()
    async with running(site, folder, swtpm) as node:
        assert (node.ask()["allow"], node.ask()["staleness"]) == (True, "stale")

        # 4. Its bound passes: nothing is decided any more.
        site.clock.advance(TERMS.expired_after)
        assert node.ask()["reasons"] == ["staleness_exceeded"]
        with pytest.raises(Fault):
            await node.outbox.deliver_all(node.deliver)

        # 5. The authority is back: decisions too, and every one of them has been delivered once, in order.
        async with node.reached():
            await node.bundles.refresh()
            await node.local.ready.wait()
            assert (node.ask()["allow"], node.valve()) == (True, ["granted"])
            await node.outbox.deliver_all(node.deliver)
            await node.outbox.deliver_all(node.deliver)
    assert await reported(site) == earlier + node.asked


async def test_a_node_that_is_revoked_meanwhile_decides_nothing_once_it_hears(
    site: Installation, folder: Path, swtpm: EmulatedTpm
) -> None:
    async with running(site, folder, swtpm) as node:
        async with node.reached():
            await node.bundles.refresh()
            await node.local.ready.wait()
        await site.authority.inventory.quarantine(site.id("edge-1"), "ada")
        assert node.ask()["allow"] is True  # nobody can tell it
        async with node.reached():
            await node.bundles.refresh()
        assert node.ask()["reasons"] == ["bundle_missing"]
    async with running(site, folder, swtpm) as node:
        assert node.ask()["reasons"] == ["bundle_missing"]


async def test_a_clock_that_is_set_back_makes_no_old_bundle_young(
    site: Installation, folder: Path, swtpm: EmulatedTpm
) -> None:
    async with running(site, folder, swtpm) as node:
        async with node.reached():
            await node.bundles.refresh()
            await node.local.ready.wait()
        began = site.clock.now()
        site.clock.advance(TERMS.expired_after)
        assert node.ask()["reasons"] == ["staleness_exceeded"]
        site.clock.set_wall(began)
        assert node.ask()["reasons"] == ["staleness_exceeded"]
