"""Queries of every kind, few enough in values that two of them often agree in part."""

from __future__ import annotations

from hypothesis import strategies as st

from foundation.identity import AttestationClass, Posture, Verdict
from policies.model import Query, Staleness
from tests.support.workspaces import node, query

_TEXTS = st.sampled_from(["a", "b", "", "n", "a\0", "é"])
_POSTURES = st.builds(Posture, st.sampled_from(AttestationClass), st.sampled_from(Verdict))
_RECORDS = st.builds(
    node,
    st.sampled_from(["n1", "n2"]),
    segment=_TEXTS,
    tier=st.integers(0, 2),
    roles=st.lists(_TEXTS, max_size=2).map(tuple),
    labels=st.dictionaries(_TEXTS, _TEXTS, max_size=2),
    versions=st.dictionaries(_TEXTS, _TEXTS, max_size=1),
    site=_TEXTS,
    region=_TEXTS,
)
_REQUESTS = st.builds(
    lambda method, path, upgrade: query(method=method, path=path, upgrade=upgrade).request,
    st.sampled_from(["GET", "POST"]),
    st.lists(_TEXTS, max_size=3).map(tuple),
    st.sampled_from(["", "websocket"]),
)
QUERIES = st.builds(
    Query,
    now=st.integers(0, 2),
    identity=_RECORDS,
    posture=_POSTURES,
    route=_TEXTS,
    request=_REQUESTS,
    staleness=st.sampled_from(Staleness),
    target=st.none() | _RECORDS,
    target_posture=st.none() | _POSTURES,
)
