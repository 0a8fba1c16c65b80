"""What one entry of presence says, and how a claim changes it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.identifiers import Kind, SpiffeId
from gateway.broker.claims import MOST_CLAIMS, Claim, decode, encode, living, with_claim, without_claims_of

GATEWAYS = [SpiffeId("fleet.example", Kind.GATEWAY, f"gw{number}") for number in range(3)]
ALIVE = frozenset({"a", "b", "c"})
CLAIMS = st.builds(
    Claim,
    st.sampled_from(GATEWAYS),
    st.sampled_from(["gw.example:7443", "[2001:db8::1]:7443"]),
    st.sampled_from("abcdef"),
    st.integers(0, 2**53),
)
ENTRIES = st.lists(CLAIMS, max_size=MOST_CLAIMS).map(tuple)


@given(ENTRIES)
def test_an_entry_says_what_was_put_into_it(claims: tuple[Claim, ...]) -> None:
    assert decode(encode(claims)) == claims


@given(ENTRIES, CLAIMS)
def test_a_claim_stands_unless_a_newer_one_of_its_gateway_is_alive(claims: tuple[Claim, ...], own: Claim) -> None:
    others = [each for each in claims if each.incarnation in ALIVE and each.incarnation != own.incarnation]
    is_newer = any(each.gateway == own.gateway and each.epoch > own.epoch for each in others)
    changed = with_claim(claims, own, ALIVE)
    if is_newer:
        assert changed is None
    elif changed is not None:
        assert [each for each in changed if each.gateway == own.gateway] == [own]
        assert all(each in changed for each in others if each.gateway != own.gateway)
        assert all(each.incarnation in ALIVE for each in changed if each != own)
    else:
        assert len([each for each in others if each.gateway != own.gateway]) >= MOST_CLAIMS


@given(ENTRIES)
def test_what_counts_is_the_newest_of_each_gateway_that_is_alive(claims: tuple[Claim, ...]) -> None:
    found = living(claims, ALIVE, GATEWAYS[1])
    assert len({each.gateway for each in found}) == len(found)
    assert all(each.incarnation in ALIVE for each in found)
    for each in claims:
        if each.incarnation in ALIVE:
            assert any(other.gateway == each.gateway and other.epoch >= each.epoch for other in found)
    assert all(each.gateway != GATEWAYS[1] for each in found[1:])


@given(ENTRIES)
def test_nothing_is_left_of_who_leaves_and_of_who_is_gone(claims: tuple[Claim, ...]) -> None:
    left = without_claims_of(claims, "a", ALIVE)
    assert left == tuple(each for each in claims if each.incarnation in {"b", "c"})


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"{}",
        b'{"claims":[{}]}',
        b'{"claims":[],"more":1}',
        b'{"claims":[{"gateway":"x","relay":"h:1","incarnation":"a","epoch":1}]}',
        b'{"claims":[{"gateway":"spiffe://fleet.example/gateway/g","relay":"h:1","incarnation":"a","epoch":-1}]}',
        b'{"claims":' + b"[" * 40_000,
    ],
)
def test_an_entry_that_is_not_well_formed_says_nothing(raw: bytes) -> None:
    assert decode(raw) == ()


def test_an_entry_without_a_claim_is_none() -> None:
    assert encode(()) is None
    assert decode(None) == ()
