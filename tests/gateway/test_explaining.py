"""An explanation is given by the revision that decided, while it is kept; otherwise it says by which."""

from __future__ import annotations

import functools
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from foundation.faults import Fault
from foundation.identity import PolicyPublished
from foundation.reasons import Reason
from gateway import shelf as shelves
from gateway.api.explaining import Explainer
from gateway.enforce import Enforcer
from gateway.shelf import RevisionShelf
from gateway.snapshot import SnapshotStore
from policies.lifecycle.revision import build
from policies.settings import CompileSettings, PolicySettings
from tests.support.policy import workspace
from tests.support.signing import new_signing_key
from tests.support.workspaces import query

KEY = new_signing_key()
SETTINGS = PolicySettings(decision_timeout=5.0)
GRANTS = "roles: {a: A}\ngrants:\n  - {id: g%d, role: a, route: r, methods: [GET], paths: [/x], expires: 2030-01-01}\n"


@functools.cache
def bundle(number: int) -> bytes:
    """Revision `number` has one grant, named after it."""
    return build(workspace(grants=GRANTS % number), number, 1_800_000_000, CompileSettings()).signed(KEY)


class Records:
    """A decision log of one record for each revision, of a decision that no grant covered."""

    cut: Mapping[str, Any] | None = None
    kept: Mapping[str, Any] | None = None

    async def find(self, decision_id: str) -> Mapping[str, Any]:
        asked = query("r", roles=("a",), path=("y",))
        return {
            "id": decision_id, "at": 1.8e9, "allow": False, "reasons": ["path_not_granted"], "route": "r",
            "identity": str(asked.identity.id), "method": "GET", "target": "/y", "grant": "",
            "numbers": [int(decision_id), 0, 0, 0], "input": self.kept or json.loads(json.dumps(asked.to_input())),
        }  # fmt: skip

    async def find_cut(self, permit_id: str) -> Mapping[str, Any] | None:
        return self.cut


class Bench:
    def __init__(self, folder: Path) -> None:
        self.folder, self.store = folder, SnapshotStore()
        self.shelf = RevisionShelf(folder / "revisions", KEY.public_key, SETTINGS)
        self.records = Records()
        self.explain = Explainer(self.store, self.records, self.shelf.engine)
        self._load = self.shelf.keeping(Enforcer(SETTINGS, KEY.public_key(), folder / "floor"))

    async def enforce(self, number: int) -> None:
        before = self.store.current.policy
        self.store.publish_policy(await self._load(PolicyPublished(number, bundle(number))))
        if before is not None:
            await before.engine.close()

    async def close(self) -> None:
        await self.shelf.close()
        if self.store.current.policy is not None:
            await self.store.current.policy.engine.close()


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path)
    yield made
    await made.close()


async def test_by_the_revision_that_decided(bench: Bench) -> None:
    for number in (1, 2, 3):
        await bench.enforce(number)
    for number in (3, 1, 2, 1):
        found = await bench.explain(str(number))
        assert (found.revision, found.explained_by) == (number, number)
        assert [miss.grant for miss in found.near_misses] == [f"g{number}"]
        assert found.sentences == (Reason.PATH_NOT_GRANTED.meaning,)
    assert len(bench.shelf._loaded) <= shelves.LOADED


async def test_by_the_present_one_when_it_is_kept_no_longer(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelves, "KEPT", 1)
    for number in (1, 2):
        await bench.enforce(number)
    found = await bench.explain("1")
    assert (found.revision, found.explained_by, found.near_misses[0].grant) == (1, 2, "g2")
    assert "revision 1 is no longer kept: revision 2 explains, which may read more" in found.sentences
    assert len(list((bench.folder / "revisions").iterdir())) == 1


@pytest.mark.parametrize("content", [b"", b"garbage"])
async def test_a_bundle_that_was_tampered_with_explains_nothing(bench: Bench, content: bytes) -> None:
    await bench.enforce(1)
    await bench.enforce(2)
    kept = min((bench.folder / "revisions").iterdir())
    kept.write_bytes(content)
    assert (await bench.explain("1")).explained_by == 2


async def test_a_bundle_of_another_key_explains_nothing(bench: Bench) -> None:
    await bench.enforce(1)
    await bench.enforce(2)
    kept = min((bench.folder / "revisions").iterdir())
    forged = build(workspace(grants=GRANTS % 1), 1, 1_800_000_000, CompileSettings()).signed(new_signing_key())
    kept.write_bytes(forged)
    assert (await bench.explain("1")).explained_by == 2


async def test_a_shelf_that_cannot_be_written_hinders_no_enforcing(bench: Bench) -> None:
    (bench.folder / "revisions").write_bytes(b"in the way")
    await bench.enforce(1)
    assert bench.store.current.numbers.policy == 1


async def test_policy_that_fails_to_explain_leaves_the_record(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(asked: Mapping[str, Any]) -> Mapping[str, Any]:
        raise Fault(Reason.ENGINE_TIMEOUT)

    await bench.enforce(1)
    policy = bench.store.current.policy
    assert policy is not None
    monkeypatch.setattr(policy.engine, "explain", fail)
    found = await bench.explain("1")
    assert found.sentences == (
        Reason.PATH_NOT_GRANTED.meaning,
        f"policy cannot say more: {Reason.ENGINE_TIMEOUT.meaning}",
    )
    assert (found.explained_by, found.near_misses) == (0, ())


async def test_a_question_that_was_too_large_is_not_asked_again(bench: Bench) -> None:
    await bench.enforce(1)
    bench.records.kept = {"omitted": "too large"}
    assert (await bench.explain("1")).sentences[1:] == ("policy cannot say more: the question was too large",)


async def test_a_masked_question_is_asked_with_a_word_on_it(bench: Bench) -> None:
    await bench.enforce(1)
    asked = query("r", roles=("a",), path=("y",)).to_input()
    asked["request"]["query"] = [["hmac:x:y", "hmac:x:z"]]
    bench.records.kept = json.loads(json.dumps(asked))
    found = await bench.explain("1")
    assert any("keeps as a hash alone" in text for text in found.sentences)
    assert [miss.grant for miss in found.near_misses] == ["g1"]
