"""A node's bundle on the wire: it comes back as it was, and nothing else is read as one."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.faults import Fault
from foundation.fields import Fields
from foundation.identifiers import SpiffeId
from foundation.identity import AttestationClass, IdentityRecord, Posture, SnapshotNumbers, State, Verdict
from foundation.reasons import Reason
from foundation.wire.bundle import MAX_ARCHIVE_BYTES, MAX_HEAD_BYTES, BundleTerms, NodeBundle

_NUMBERS = st.builds(SnapshotNumbers, *[st.integers(0, 2**53)] * 4)
_TERMS = st.lists(st.integers(1, 604_800), min_size=3, max_size=3).map(lambda each: BundleTerms(*sorted(each)))
BUNDLE = NodeBundle(
    at=1_800_000_000.5,
    numbers=SnapshotNumbers(3, 1, 4, 15),
    policy_key=b"-----BEGIN PUBLIC KEY-----\n",
    record=IdentityRecord(SpiffeId.parse("spiffe://example.test/node/a"), State.ACTIVE, 7, ("agent",), 2, segment="x"),
    posture=Posture(AttestationClass.VIRTUAL, Verdict.PASSED),
    attested_until=1_800_000_060.0,
    terms=BundleTerms(),
    archive=b"\x1f\x8b\nany\nbytes",
)
BUNDLES = st.builds(
    lambda numbers, terms, archive, verdict, at: replace(
        BUNDLE, numbers=numbers, terms=terms, archive=archive, posture=Posture(AttestationClass.NONE, verdict), at=at
    ),
    _NUMBERS,
    _TERMS,
    st.binary(max_size=64),
    st.sampled_from(Verdict),
    st.floats(0, 1e10),
)


@settings(deadline=None)
@given(BUNDLES)
def test_it_comes_back_as_it_was(bundle: NodeBundle) -> None:
    assert NodeBundle.parse(bundle.encode()) == bundle


@settings(max_examples=300, deadline=None)
@given(BUNDLES.map(NodeBundle.encode), st.data())
def test_a_damaged_one_is_refused_or_another(raw: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(raw) - 1))
    with contextlib.suppress(Fault):
        NodeBundle.parse(raw[:at] + data.draw(st.binary(max_size=3)) + raw[at + 1 :])


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{}",
        BUNDLE.encode() + b"x",
        BUNDLE.encode()[:-1],
        BUNDLE.encode().replace(b'"version":1', b'"version":2'),
        BUNDLE.encode().replace(b'"version":1', b'"version":1,"more":1'),
        BUNDLE.encode().replace(b'"refresh":300.0', b'"refresh":1e9'),
        BUNDLE.encode().replace(b'"verdict":"passed"', b'"verdict":"perhaps"'),
        b" " * MAX_HEAD_BYTES + BUNDLE.encode(),
    ],
)
def test_anything_else_is_refused(raw: bytes) -> None:
    with pytest.raises(Fault) as caught:
        NodeBundle.parse(raw)
    assert caught.value.reason in {Reason.MESSAGE_MALFORMED, Reason.MESSAGE_TOO_LARGE}


def test_an_archive_is_bounded() -> None:
    with pytest.raises(Fault):
        NodeBundle.parse(replace(BUNDLE, archive=bytes(MAX_ARCHIVE_BYTES + 1)).encode())


@pytest.mark.parametrize(
    "section", [{"refresh": "0s"}, {"refresh": "1h", "stale_after": "1m"}, {"expired_after": "8d"}]
)
def test_terms_are_in_order(section: dict[str, str]) -> None:
    with pytest.raises(Fault):
        BundleTerms.parse(Fields(section, "authority.bundle", Reason.SETTING_INVALID))
