"""What a node's record says of its own decision: read as outside data, and told as the node's word."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.faults import Fault
from foundation.identifiers import SpiffeId
from foundation.ports import NodeWord
from foundation.reasons import Reason
from policies.explain import Evidence, explanation
from policies.node_words import refusals, told

ID = "d-" + "0" * 27 + "1"
NODE, OTHER = (SpiffeId.parse(f"spiffe://fleet.example/node/{name}") for name in ("edge-1", "edge-2"))
LOCAL: dict[str, Any] = {
    "id": ID,
    "allow": False,
    "reasons": ["staleness_exceeded"],
    "uid": 1000,
    "roles": ["reader"],
    "route": "strict",
    "method": "GET",
    "path": "/x",
    "grant": "",
    "staleness": "stale",
    "age": 11.2,
    "numbers": {"policy": 7, "revocations": 1, "postures": 2, "inventory": 3},
    "input": {"route": "strict"},
}
REFUSED: dict[str, Any] = {
    "id": ID,
    "allow": False,
    "reasons": ["service_not_offered"],
    "source": str(OTHER),
    "segments": [],
    "route": "database",
    "service": "postgres",
    "revision": 6,
    "floor": 7,
}


def word(body: dict[str, Any], node: SpiffeId = NODE) -> NodeWord:
    return NodeWord(node, 1_800_000_000.0, 1_800_003_600.0, body)


def test_a_local_decision_is_told_with_whose_word_it_is_and_what_it_rests_on() -> None:
    by = told(ID, (word(LOCAL),))
    assert (by.node, by.staleness) == (str(NODE), "stale")
    found = explanation(by.record, Evidence(said=by.sentences, node=by.node, staleness=by.staleness))
    assert (found.decision, found.allowed, found.at, found.who) == (ID, False, 1_800_000_000.0, str(NODE))
    assert (found.what, found.route, found.revision) == ("GET /x", "strict", 7)
    assert (found.reasons, found.remedies) == (
        (Reason.STALENESS_EXCEEDED,),
        (Reason.STALENESS_EXCEEDED.remedy,),
    )
    assert (found.node, found.staleness) == (str(NODE), "stale")
    assert found.sentences == (
        Reason.STALENESS_EXCEEDED.meaning,
        f"{NODE} decided this itself, for its own program of the user 1000, by its bundle of revision 7, "
        "whose facts were stale (11 s old)",
        f"this is the word of {NODE}, delivered from its outbox at 2027-01-15T09:00:00Z: no gateway decided it",
    )
    assert by.record["input"] == {"route": "strict"}


def test_one_that_policy_was_not_asked_for_names_no_facts() -> None:
    nothing = {"policy": 0, "revocations": 0, "postures": 0, "inventory": 0}
    body = LOCAL | {"reasons": ["bundle_missing"], "staleness": "", "age": 0.0, "numbers": nothing}
    del body["input"]
    by = told(ID, (word(body),))
    assert by.sentences[0] == f"{NODE} decided this itself, for its own program of the user 1000, without a bundle"
    assert by.record["input"] is None


def test_a_record_of_an_older_agent_is_told_as_far_as_it_goes() -> None:
    body = {name: value for name, value in LOCAL.items() if name not in {"age", "input"}}
    by = told(ID, (word(body),))
    assert by.sentences[0].endswith("by its bundle of revision 7, whose facts were stale")


def test_a_refused_stream_is_told_beside_the_permit_and_alone() -> None:
    by = told(ID, (word(REFUSED),))
    assert (by.record["identity"], by.record["route"], by.record["target"]) == (
        str(OTHER),
        "database",
        f"service postgres of {NODE}",
    )
    refused = f"{NODE} refused this stream itself, by its revision 7, which a gateway had permitted by revision 6"
    assert by.sentences[0] == refused
    meaning = Reason.from_code("service_not_offered").meaning
    assert refusals((word(REFUSED), word(LOCAL))) == (f"by its own word, {refused}: {meaning}",)


def test_of_several_the_first_is_told_and_the_others_are_named() -> None:
    by = told(ID, (word(LOCAL), word(LOCAL | {"allow": True}, OTHER), word(LOCAL)))
    assert (by.node, by.record["allow"]) == (str(NODE), False)
    assert by.sentences[2:] == (f"{OTHER} delivered a record of this ID too, later",)


@pytest.mark.parametrize(
    "change",
    [
        {"reasons": []},
        {"reasons": ["unheard_of"]},
        {"reasons": "granted"},
        {"allow": "yes"},
        {"staleness": "rotten"},
        {"numbers": None},
        {"numbers": {"policy": -1, "revocations": 0, "postures": 0, "inventory": 0}},
        {"age": "old"},
        {"uid": None},
        {"path": "x" * 5000},
    ],
)
def test_what_cannot_be_read_is_not_there(change: dict[str, Any]) -> None:
    with pytest.raises(Fault) as caught:
        told(ID, (word(LOCAL | change),))
    assert caught.value.reason is Reason.NOT_FOUND
    assert str(NODE) in caught.value.detail


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(sorted(LOCAL | REFUSED)), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(sorted(LOCAL | REFUSED)), _values))
def test_whatever_a_node_writes_is_told_or_not_found(changes: dict[str, Any]) -> None:
    for whole in (LOCAL, REFUSED):
        words = (word(whole | changes),)
        refusals(words)
        with contextlib.suppress(Fault):
            by = told(ID, words)
            explanation(by.record, Evidence(said=by.sentences, node=by.node))
