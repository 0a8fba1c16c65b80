"""An explanation is given by the revision that decided, while it is kept; otherwise it says by which."""

from __future__ import annotations

import functools
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from foundation.faults import Fault
from foundation.identifiers import SpiffeId
from foundation.identity import PolicyPublished
from foundation.ports import NodeWord
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

    permit = False
    missing = False

    async def find(self, decision_id: str) -> Mapping[str, Any]:
        if self.missing:
            raise Fault(Reason.NOT_FOUND, field="id")
        asked = query("r", roles=("a",), path=("y",))
        return {
            "id": decision_id, "at": 1.8e9, "allow": self.permit, "route": "r",
            "reasons": ["granted" if self.permit else "path_not_granted"],
            "identity": str(asked.identity.id), "method": "GET", "target": "/y", "grant": "",
            "numbers": [int(decision_id), 0, 0, 0], "input": self.kept or json.loads(json.dumps(asked.to_input())),
        }  # fmt: skip

    async def find_cut(self, permit_id: str) -> Mapping[str, Any] | None:
        return self.cut


class Words:
    """What nodes deliver, by decision."""

    def __init__(self) -> None:
        self.of: dict[str, tuple[NodeWord, ...]] = {}

    async def of_decision(self, decision_id: str) -> tuple[NodeWord, ...]:
        return self.of.get(decision_id, ())


class Bench:
    def __init__(self, folder: Path) -> None:
        self.folder, self.store = folder, SnapshotStore()
        self.shelf = RevisionShelf(folder / "revisions", KEY.public_key, SETTINGS)
        self.records = Records()
        self.words = Words()
        self.explain = Explainer(self.store, self.records, self.shelf.engine, self.words)
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


NODE = SpiffeId.parse("spiffe://fleet.example/node/edge-9")


def word(number: int, **changes: Any) -> NodeWord:
    """A node's own denial by revision `number`."""
    asked = query("r", roles=("a",), path=("y",))
    body = {
        "allow": False, "reasons": ["path_not_granted"], "uid": 7, "route": "r", "method": "GET", "path": "/y",
        "staleness": "fresh", "age": 3.0, "input": json.loads(json.dumps(asked.to_input())),
        "numbers": {"policy": number, "revocations": 0, "postures": 0, "inventory": 0},
    }  # fmt: skip
    return NodeWord(NODE, 1.8e9, 1.8e9 + 60, body | changes)


async def test_a_nodes_own_decision_is_explained_by_the_revision_of_its_bundle(bench: Bench) -> None:
    for number in (1, 2):
        await bench.enforce(number)
    bench.records.missing, bench.words.of["d-9"] = True, (word(1),)
    found = await bench.explain("d-9")
    assert (found.decision, found.node, found.staleness, found.who) == ("d-9", str(NODE), "fresh", str(NODE))
    assert (found.revision, found.explained_by, found.near_misses[0].grant) == (1, 1, "g1")
    assert found.near_misses[0].lacks == ("it covers /x",)
    assert "decided this itself, for its own program of the user 7, by its bundle of revision 1" in found.sentences[1]
    assert "no gateway decided it" in found.sentences[2]


async def test_a_question_that_a_node_made_up_explains_nothing_and_harms_nothing(bench: Bench) -> None:
    await bench.enforce(1)
    bench.records.missing = True
    for made_up in ({}, {"identity": 7}, {"request": {"path": [[]] * 1000}}, {"omitted": "too large"}, "text", None):
        bench.words.of["d-9"] = (word(1, input=made_up),)
        found = await bench.explain("d-9")
        assert (found.node, found.reasons) == (str(NODE), (Reason.PATH_NOT_GRANTED,))


async def test_what_this_gateway_decided_its_own_log_says(bench: Bench) -> None:
    await bench.enforce(1)
    bench.words.of["1"] = (word(1, allow=True, reasons=["granted"]),)
    found = await bench.explain("1")
    assert (found.node, found.allowed) == ("", False)


async def test_that_a_node_refused_what_was_permitted_is_told_as_its_word(bench: Bench) -> None:
    await bench.enforce(1)
    refused = {"reasons": ["service_not_offered"], "source": "s", "service": "db", "revision": 1, "floor": 2}
    bench.records.permit, bench.words.of["1"] = True, (word(1, **refused),)
    found = await bench.explain("1")
    assert (found.node, found.allowed) == ("", True)
    (said,) = [text for text in found.sentences if str(NODE) in text]
    assert said.startswith(f"by its own word, {NODE} refused this stream itself, by its revision 2")
    bench.records.missing = True
    alone = await bench.explain("1")
    assert (alone.node, alone.allowed, alone.who, alone.revision) == (str(NODE), False, "s", 2)


async def test_what_nobody_knows_is_not_found(bench: Bench) -> None:
    bench.records.missing = True
    bench.words.of["d-8"] = (word(1, reasons=[]),)
    for asked in ("d-7", "d-8"):
        with pytest.raises(Fault) as caught:
            await bench.explain(asked)
        assert caught.value.reason is Reason.NOT_FOUND
    away = Explainer(bench.store, bench.records, bench.shelf.engine)
    with pytest.raises(Fault) as caught:
        await away("d-7")
    assert caught.value.reason is Reason.NOT_FOUND
