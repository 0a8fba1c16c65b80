"""Keys: two queries with one key have one projection, types and absence included."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.identifiers import Kind
from policies.model import Query, Staleness
from policies.projection import EVERYTHING, Path, Reads
from policies.projector import Projector, canonical, project
from tests.support.queries import QUERIES
from tests.support.workspaces import node, query


def _paths(value: Any, path: Path = ()) -> list[Path]:
    below = value.items() if isinstance(value, dict) else ()
    return [path, *(found for key, item in below for found in _paths(item, (*path, key)))]


FULL = query(labels={"gpu": "x"})
FULL = FULL._replace(target=FULL.identity, target_posture=FULL.posture)
ALL_PATHS = [
    *_paths(FULL.to_input()),
    ("identity", "labels", "a", "deeper"),
    ("identity", "versions", "b"),
    ("route", "below"),
    ("request", "path", "0"),
    ("nothing",),
]


@given(first=QUERIES, second=QUERIES, reads=st.lists(st.sampled_from(ALL_PATHS), max_size=3, unique=True))
@settings(max_examples=400, deadline=None)
def test_one_key_means_one_projection(first: Query, second: Query, reads: list[Path]) -> None:
    projector = Projector("digest", "e", tuple(reads))
    if projector.key(first) == projector.key(second):
        documents = first.to_input(), second.to_input()
        for path in reads:
            assert repr(project(documents[0], path)) == repr(project(documents[1], path))


@given(first=QUERIES, path=st.sampled_from(ALL_PATHS))
@settings(max_examples=200, deadline=None)
def test_what_is_not_read_is_not_in_the_key(first: Query, path: Path) -> None:
    key = Projector("digest", "e", (("route",),)).key
    other = query(route=first.route)._replace(identity=replace(query().identity, epoch=first.identity.epoch))
    assert key(first) == key(other)


@pytest.mark.parametrize(
    ("reads", "change"),
    [
        ((("now",),), {"now": 1}),
        ((("now",),), {"now": True}),
        ((("now",),), {"now": 1.0}),
        ((("route",),), {"route": "other"}),
        ((("staleness",),), {"staleness": Staleness.STALE}),
        ((("target", "name"),), {"target": node("n1"), "target_posture": FULL.posture}),
        ((("identity", "kind"),), {"identity": query(kind=Kind.SERVICE).identity}),
        ((("identity", "labels", "gpu"),), {"identity": FULL.identity}),
        (EVERYTHING, {"route": "other"}),
        ((), {"identity": replace(query().identity, epoch=2)}),
    ],
)
def test_what_is_read_is_in_the_key(reads: Reads, change: dict[str, Any]) -> None:
    key = Projector("digest", "e", reads).key
    asked = query()._replace(now=1_800_000_000)
    assert key(asked) != key(asked._replace(**change))


def test_types_differ() -> None:
    key = Projector("digest", "e", (("now",),)).key
    keys = {key(query()._replace(now=now)) for now in (1, 1.0, True, "1", None)}  # type: ignore[arg-type]
    assert len(keys) == 5


def test_digest_and_entrypoint_are_in_the_key() -> None:
    keys = {Projector(digest, entry, ()).key(query()) for digest, entry in (("a", "b"), ("b", "a"), ("ab", ""))}
    assert len(keys) == 3


def test_missing_is_not_null_and_no_object_is_not_empty() -> None:
    found = [project(document, ("a", "b")) for document in ({}, {"a": None}, {"a": {}}, {"a": {"b": None}}, {"a": []})]
    assert len({repr(item) for item in found[:4]}) == 4
    assert found[4] == found[1]  # neither holds a key


def test_canonical_tells_lists_from_objects_and_knows_no_order() -> None:
    values: list[Any] = [[], {}, ["a"], {"a": "a"}, ["a", "a"], "a", ["o"], {"o": 1}, [["o"]], [None], None]
    assert len({repr(canonical(value)) for value in values}) == len(values)
    assert canonical({"x": 1, "y": 2}) == canonical({"y": 2, "x": 1})


def test_what_has_no_canonical_bytes_has_no_key() -> None:
    class Text(str):
        __slots__ = ()

    assert Projector("digest", "e", (("route",),)).key(query(route=Text("r"))) is None
