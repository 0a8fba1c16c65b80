"""What a node takes of what gateways announce: by its own signed revision, not by the gateway's word."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.offer import NOTHING, Offer, Opening
from foundation.identifiers import SpiffeId
from foundation.identity import IdentityRecord, State
from foundation.reasons import Reason
from tests.support.policy import workspace

ROUTES = """
routes:
  - {name: database, type: stream, service: postgres, kinds: [node]}
  - {name: narrow, type: stream, service: postgres, kinds: [node, operator], segments: [office]}
  - {name: metrics, type: stream, service: prometheus, kinds: [node]}
  - {name: web, upstreams: ['http://127.0.0.1:80'], kinds: [node]}
"""
SEGMENTS = """
segments:
  - {name: edge, reaches: [edge]}
  - {name: office, reaches: [edge, office]}
  - {name: lab, reaches: [office]}
"""
DATA = workspace(routes=ROUTES, segments=SEGMENTS, grants="grants: []").data
NODE = IdentityRecord(SpiffeId.parse("spiffe://example.test/node/b"), State.ACTIVE, 1, segment="edge")
CALLER = SpiffeId.parse("spiffe://example.test/node/a")
OPENING = Opening(CALLER, ("edge",), "database", "postgres", 7)
OFFER = Offer.of(DATA, NODE, ["postgres"], 5)


def test_it_takes_what_the_revision_offers() -> None:
    assert OFFER.refusal(OPENING) is None
    assert set(OFFER.routes) == {"database", "narrow"}


@pytest.mark.parametrize("revision", [5, 6, 1000])
def test_a_gateway_at_or_above_the_floor_is_believed(revision: int) -> None:
    assert OFFER.refusal(replace(OPENING, revision=revision)) is None


@pytest.mark.parametrize(
    ("opening", "reason"),
    [
        (replace(OPENING, revision=4), Reason.REVISION_DOWNGRADE),
        (replace(OPENING, route="elsewhere"), Reason.ROUTE_UNKNOWN),
        (replace(OPENING, route="web"), Reason.ROUTE_UNKNOWN),
        (replace(OPENING, service="ssh"), Reason.SERVICE_NOT_OFFERED),
        (replace(OPENING, route="metrics", service="prometheus"), Reason.SERVICE_NOT_OFFERED),
        (replace(OPENING, route="metrics"), Reason.SERVICE_NOT_OFFERED),
        (replace(OPENING, source=SpiffeId.parse("spiffe://other.test/node/a")), Reason.IDENTITY_UNKNOWN),
        (replace(OPENING, source=SpiffeId.parse("spiffe://example.test/operator/a")), Reason.KIND_NOT_ALLOWED),
        (replace(OPENING, segments=("lab",)), Reason.SEGMENT_FORBIDDEN),
        (replace(OPENING, segments=()), Reason.SEGMENT_FORBIDDEN),
        (replace(OPENING, segments=("unheard-of",)), Reason.SEGMENT_FORBIDDEN),
        (replace(OPENING, route="narrow"), Reason.SEGMENT_FORBIDDEN),
    ],
)
def test_it_refuses_everything_else(opening: Opening, reason: Reason) -> None:
    assert OFFER.refusal(opening) is reason


def test_the_routes_own_segments_narrow_it() -> None:
    assert OFFER.refusal(replace(OPENING, route="narrow", segments=("office",))) is None


def test_nothing_is_offered_without_a_bundle() -> None:
    assert NOTHING.refusal(OPENING) is Reason.REVISION_MISSING


@pytest.mark.parametrize("state", [State.EXPECTED, State.QUARANTINED, State.REVOKED])
def test_a_node_that_is_not_active_offers_nothing(state: State) -> None:
    assert Offer.of(DATA, replace(NODE, state=state), ["postgres"]).refusal(OPENING) is Reason.SERVICE_NOT_OFFERED


def test_a_node_without_a_segment_is_reached_by_nobody() -> None:
    assert Offer.of(DATA, replace(NODE, segment=""), ["postgres"]).refusal(OPENING) is Reason.SEGMENT_FORBIDDEN


@pytest.mark.parametrize("data", [{}, {"workspace": {}}, {"workspace": {"routes": {"database": {"type": "stream"}}}}])
def test_a_revision_that_says_less_offers_less(data: dict[str, object]) -> None:
    assert Offer.of(data, NODE, ["postgres"]).refusal(OPENING) is not None


@settings(deadline=None)
@given(
    st.builds(
        Opening,
        st.sampled_from([CALLER, SpiffeId.parse("spiffe://example.test/operator/a")]),
        st.lists(st.sampled_from(["", "edge", "office", "lab"]), max_size=3).map(tuple),
        st.sampled_from(["database", "narrow", "metrics", "web", "none"]),
        st.sampled_from(["postgres", "prometheus", "ssh"]),
        st.integers(0, 10),
    )
)
def test_whatever_it_takes_the_revision_says(opening: Opening) -> None:
    rows, segments = DATA["workspace"]["routes"], DATA["workspace"]["segments"]
    if OFFER.refusal(opening) is None:
        row = rows[opening.route]
        assert (row["type"], row["service"], opening.service) == ("stream", "postgres", "postgres")
        assert opening.source.kind in row["kinds"]
        allowed = set(row.get("segments", segments))
        assert any("edge" in segments[each] for each in allowed.intersection(opening.segments))
        assert opening.revision >= 5


SELECTED = workspace(
    routes="""
routes:
  - {name: database, type: stream, service: postgres, kinds: [node]}
  - {name: copies, type: stream, service: postgres, kinds: [node], to: [replica]}
""",
    segments="""
segments:
  - {name: web, reaches: [database]}
  - {name: report, reaches: [replica]}
  - {name: database, select: {labels: {role: [db, replica]}}}
  - {name: replica, select: {labels: {role: [replica]}, sites: [s1]}}
""",
    grants="grants: []",
).data


@pytest.mark.parametrize(
    ("labels", "site", "callers", "copiers"),
    [
        ({"role": "db"}, "s1", {"web"}, set()),
        ({"role": "replica"}, "s1", {"web", "report"}, {"report"}),
        ({"role": "replica"}, "s2", {"web"}, set()),
        ({}, "s1", set(), set()),
    ],
)
def test_selectors_put_this_node_in_segments_that_others_reach(
    labels: dict[str, str], site: str, callers: set[str], copiers: set[str]
) -> None:
    offer = Offer.of(SELECTED, replace(NODE, segment="", labels=labels, site=site), ["postgres"])
    assert offer.routes["database"].segments == callers
    assert offer.routes["copies"].segments == copiers
