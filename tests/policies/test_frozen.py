"""What the record keeps of a question: what policy can read, no more; masked leaves as hashes."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.decisionlog.masking import Mask
from policies.frozen import Freezer, kept_part, masked_paths
from policies.model import Query
from policies.projection import EVERYTHING, Path, Reads
from policies.projector import Projector, project
from tests.policies.test_projector import ALL_PATHS
from tests.support.queries import QUERIES
from tests.support.workspaces import query

MASK = Mask(bytes(32))
READS = st.lists(st.sampled_from(ALL_PATHS), max_size=4, unique=True).map(tuple)


def asked(*pairs: tuple[str, str]) -> Query:
    return query()._replace(request=replace(query().request, query=pairs))


@given(question=QUERIES, reads=READS)
@settings(max_examples=300, deadline=None)
def test_policy_sees_the_same_in_what_was_kept(question: Query, reads: Reads) -> None:
    document = question.to_input()
    kept = json.loads(json.dumps(kept_part(document, reads)))
    for path in reads:
        assert _seen(kept, path) == _seen(document, path)


@given(question=QUERIES, reads=READS)
@settings(max_examples=200, deadline=None)
def test_nothing_else_is_kept(question: Query, reads: Reads) -> None:
    for path in _leaves(kept_part(question.to_input(), reads)):
        assert any(path[: len(read)] == read for read in reads), path


@given(first=QUERIES, second=QUERIES, reads=READS)
@settings(max_examples=300, deadline=None)
def test_one_key_means_one_kept_document(first: Query, second: Query, reads: Reads) -> None:
    """So that a record may refer to an earlier one of the same key."""
    key, freeze = Projector("digest", "e", reads).key, Freezer(reads, MASK)
    if key(first) == key(second):
        assert freeze(first) == freeze(second)


def test_what_the_schema_marks_is_masked() -> None:
    assert masked_paths() == (("request", "query"),)
    freeze = Freezer((("request", "query"), ("route",)), MASK)
    kept = json.loads(freeze(asked(("token", "hunter2"), ("b", "hunter2"))))
    (name, first), (_, second) = kept["request"]["query"]
    assert first == second == MASK.value("hunter2")
    assert (name, kept["route"]) == (MASK.value("token"), "control-plane")
    assert b"hunter2" not in Freezer(EVERYTHING, MASK)(asked(("token", "hunter2")))


def test_what_is_not_read_is_not_masked_either() -> None:
    assert json.loads(Freezer((("route",),), MASK)(asked(("token", "hunter2")))) == {"route": "control-plane"}


@pytest.mark.parametrize(
    ("kept", "reads", "covered"),
    [
        ((("route",),), (("route",),), True),
        ((("identity",),), (("identity", "name"),), True),
        ((("identity", "name"),), (("identity",),), False),
        ((("route",),), (("route",), ("staleness",)), False),
        ((("route",),), (), True),
        ((("request",),), (("request", "path"),), True),
        ((("request", "query"),), (("request", "query"),), False),
        ((("request",),), (("request",),), False),
        (EVERYTHING, EVERYTHING, False),
    ],
)
def _seen(document: Any, path: Path) -> Any:
    """What policy sees at `path`; that the path ends early is all that it sees there."""
    found = project(document, path)
    return found if found[0] == "value" else "undefined"


def _leaves(value: Any, path: Path = ()) -> list[Path]:
    if not isinstance(value, dict) or not value:
        return [path] if not isinstance(value, dict) else []
    return [leaf for key, item in value.items() for leaf in _leaves(item, (*path, key))]
