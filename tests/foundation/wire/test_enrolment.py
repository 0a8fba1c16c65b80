"""The enrolment messages: what is written is read back, and nothing else is read."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.faults import Fault
from foundation.reasons import Reason
from foundation.wire.enrolment import (
    MAX_BEGIN_BYTES,
    Begin,
    Challenge,
    Complete,
    Evidence,
    Issued,
    PcrSelection,
    Token,
    proof,
    qualifying_data,
)

short = st.binary(max_size=64)
MESSAGES: dict[type[Any], st.SearchStrategy[Any]] = {
    Begin: st.builds(
        Begin,
        purpose=st.sampled_from(("enrol", "renew")),
        attestation=st.sampled_from(("tpm", "none")),
        node=st.sampled_from(("", "n1", "edge-7.berlin")),
        token=st.text(max_size=64),
        ek_certificate=short,
        ek_chain=st.lists(short, max_size=6).map(tuple),
        ek_public=short,
        ak_public=short,
        tls_public=short,
    ),
    Challenge: st.builds(
        Challenge,
        session=st.binary(max_size=16),
        nonce=st.binary(max_size=32),
        expires_in=st.integers(1, 3600),
        credential_blob=short,
        encrypted_secret=short,
        pcrs=st.builds(
            PcrSelection,
            st.sampled_from(("sha256", "sha384")),
            st.sets(st.integers(0, 23), min_size=1).map(lambda found: tuple(sorted(found))),
        ),
        server_spki_sha256=st.binary(max_size=32),
    ),
    Complete: st.builds(Complete, st.binary(max_size=16), st.binary(max_size=500), st.binary(max_size=32)),
    Evidence: st.builds(
        Evidence,
        certify_attest=short,
        certify_signature=short,
        quote_attest=short,
        quote_signature=short,
        pcr_values=st.lists(short, max_size=24).map(tuple),
        event_log=short,
        csr=short,
        possession=short,
    ),
    Issued: st.builds(
        Issued,
        spiffe_id=st.text(max_size=64),
        chain=st.lists(short, max_size=6).map(tuple),
        not_after=st.integers(0, 2**40),
        renew_after=st.integers(0, 2**40),
        attestation=st.sampled_from(("hardware", "virtual", "none")),
        attested_until=st.integers(0, 2**40),
    ),
}
any_message = st.one_of(*MESSAGES.values())


@given(any_message)
def test_what_is_written_is_read_back(message: Any) -> None:
    assert type(message).parse(message.encode()) == message


@settings(max_examples=60)
@given(any_message)
def test_each_field_is_needed_and_none_more_is_taken(message: Any) -> None:
    document = json.loads(message.encode())
    for name in document:
        less = {key: value for key, value in document.items() if key != name}
        with pytest.raises(Fault) as caught:
            type(message).parse(json.dumps(less).encode())
        assert caught.value.field.endswith(f".{name}")
    with pytest.raises(Fault):
        type(message).parse(json.dumps({**document, "more": 1}).encode())


@settings(max_examples=60)
@given(any_message, st.data())
def test_a_field_of_another_type_is_refused(message: Any, data: st.DataObject) -> None:
    document = json.loads(message.encode())
    name = data.draw(st.sampled_from(sorted(document)))
    document[name] = data.draw(st.sampled_from([None, True, 1.5, {"x": 1}, [[]], -1]))
    with pytest.raises(Fault) as caught:
        type(message).parse(json.dumps(document).encode())
    assert f".{name}" in caught.value.field


@given(st.sampled_from(sorted(MESSAGES, key=str)), st.binary(max_size=200))
def test_bytes_are_refused_by_a_fault_alone(kind: type[Any], raw: bytes) -> None:
    with pytest.raises(Fault):
        kind.parse(raw)


def test_a_message_over_its_cap_is_refused() -> None:
    with pytest.raises(Fault) as caught:
        Begin.parse(b" " * (MAX_BEGIN_BYTES + 1))
    assert caught.value.reason is Reason.MESSAGE_TOO_LARGE


def test_trailing_bytes_are_refused() -> None:
    message = Complete(b"s" * 16, b"e", b"p")
    with pytest.raises(Fault):
        Complete.parse(message.encode() + b"{}")


tokens = st.builds(
    Token,
    st.binary(min_size=32, max_size=32),
    st.binary(min_size=16, max_size=16),
    st.binary(min_size=32, max_size=32),
)


@given(tokens)
def test_a_token_comes_back_and_shows_no_secret(token: Token) -> None:
    assert Token.parse(token.encode()) == token
    assert token.secret.hex() not in repr(token)


@given(tokens, st.data())
def test_a_token_has_one_spelling(token: Token, data: st.DataObject) -> None:
    text = token.encode()
    at = data.draw(st.integers(0, len(text) - 1))
    other = text[:at] + data.draw(st.characters()) + text[at + 1 :]
    with contextlib.suppress(Fault):
        assert Token.parse(other).encode() == other
    for wrong in (text + "=", text[:-1], " " + text, text[4:], text + "A"):
        with pytest.raises(Fault):
            Token.parse(wrong)


parts = ["certify", "enrol", b"session", b"nonce", b"first", b"spki"]


def test_qualifying_data_binds_each_part_and_their_borders() -> None:
    base: Any = list(parts)
    seen = {qualifying_data(*base)}
    for place, part in enumerate(parts):
        changed = list(base)
        changed[place] = part + part[:1]
        seen.add(qualifying_data(*changed))
    shifted = [*base[:2], b"sessionn", b"once", *base[4:]]
    seen.add(qualifying_data(*shifted))
    assert len(seen) == len(parts) + 2
    assert {len(digest) for digest in seen} == {32}


def test_the_proof_binds_each_part() -> None:
    base = [b"secret", b"session", b"first", b"evidence"]
    seen = {proof(*base)}
    for place in range(4):
        seen.add(proof(*[part + b"x" if i == place else part for i, part in enumerate(base)]))
    assert len(seen) == 5
