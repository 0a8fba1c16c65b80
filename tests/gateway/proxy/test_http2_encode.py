"""Header lists without a table are read by others as they were meant."""

from __future__ import annotations

import pytest
from hpack import Decoder, NeverIndexedHeaderTuple
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.proxy.headers import Field
from gateway.proxy.http2_encode import PlainEncoder

_NAMES = st.sampled_from([b":status", b"content-type", b"set-cookie", b"x-a", b"etag"]) | st.binary(
    min_size=1, max_size=300
)
_VALUES = st.sampled_from([b"200", b"404", b"", b"text/plain"]) | st.binary(max_size=300)


@given(st.lists(st.lists(st.tuples(_NAMES, _VALUES), max_size=8), max_size=4), st.sampled_from([0, 100, 4096]))
@settings(max_examples=300, deadline=None)
def test_what_is_written_is_read(blocks: list[list[Field]], table: int) -> None:
    encoder, decoder = PlainEncoder(), Decoder()
    decoder.max_allowed_table_size = table
    for fields in blocks:
        assert list(decoder.decode(encoder.encode(fields), raw=True)) == fields
        assert len(decoder.header_table.dynamic_entries) == 0


@pytest.mark.parametrize(
    ("field", "raw"),
    [
        ((b":status", b"200"), b"\x88"),
        ((b":status", b"201"), b"\x08\x03201"),
        ((b"content-length", b"2"), b"\x0f\x0d\x012"),
        ((b"x-a", b"b" * 200), b"\x00\x03x-a\x7f\x49" + b"b" * 200),
        ((b"set-cookie", b"a=1"), b"\x1f\x28\x03a=1"),
    ],
)
def test_fields_are_written_as_rfc_7541_says(field: Field, raw: bytes) -> None:
    encoder = PlainEncoder()
    assert encoder.encode([field]) == b"\x20" + raw
    assert encoder.encode([field]) == raw


def test_secrets_are_never_indexed_further_on() -> None:
    (secret, other) = Decoder().decode(PlainEncoder().encode([(b"set-cookie", b"a=1"), (b"x-a", b"1")]), raw=True)
    assert isinstance(secret, NeverIndexedHeaderTuple)
    assert not isinstance(other, NeverIndexedHeaderTuple)
