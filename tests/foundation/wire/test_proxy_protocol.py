"""PROXY v2: what is written is read again, and nothing else is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.faults import Fault
from foundation.reasons import Reason
from foundation.wire.proxy_protocol import (
    FIXED_BYTES,
    LOCAL,
    MAX_BYTES,
    SIGNATURE,
    Addresses,
    crc32c,
    parse_header,
    proxy_header,
    remaining,
)

ports = st.integers(0, 65_535)
ends = st.one_of(
    st.tuples(*[st.tuples(st.ip_addresses(v=4).map(str), ports)] * 2),
    st.tuples(*[st.tuples(st.ip_addresses(v=6).map(str), ports)] * 2),
)
PLAIN = proxy_header(Addresses(("192.0.2.7", 40_000), ("198.51.100.1", 443)))


def header(block: bytes, *, command: int = 0x21, family: int = 0x11) -> bytes:
    return SIGNATURE + bytes((command, family)) + len(block).to_bytes(2, "big") + block


def with_values(values: bytes) -> bytes:
    return header(PLAIN[FIXED_BYTES:] + values)


@given(ends)
def test_what_is_written_is_read(pair: tuple[tuple[str, int], tuple[str, int]]) -> None:
    addresses = Addresses(*pair)
    written = proxy_header(addresses)
    assert remaining(written[:FIXED_BYTES]) == len(written) - FIXED_BYTES
    assert parse_header(written) == addresses


def test_the_bytes_are_those_of_the_specification() -> None:
    expected = "0d0a 0d0a 000d 0a51 5549 540a 2111 000c c000 0207 c633 6401 9c40 01bb"
    assert bytes.fromhex(expected) == PLAIN


def test_two_versions_of_ip_are_told_as_ipv6() -> None:
    mixed = Addresses.between(("192.0.2.7", 1), ("2001:db8::1", 2))
    assert mixed == Addresses(("::ffff:c000:207", 1), ("2001:db8::1", 2))
    assert parse_header(proxy_header(mixed)) == mixed


def test_a_connection_of_the_proxy_itself_has_no_addresses() -> None:
    assert parse_header(LOCAL) is None
    assert parse_header(header(b"anything", command=0x20, family=0)) is None


def test_a_right_checksum_is_taken_and_a_wrong_one_refused() -> None:
    assert crc32c(b"123456789") == 0xE3069283  # the check value of CRC-32C
    blank = with_values(b"\x03\x00\x04\x00\x00\x00\x00")
    summed = blank[:-4] + crc32c(blank).to_bytes(4, "big")
    assert parse_header(summed) is not None
    with pytest.raises(Fault):
        parse_header(summed[:-1] + bytes((summed[-1] ^ 1,)))


@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        b"PROXY TCP4 192.0.2.7 198.51.100.1 40000 443\r\n",  # the text form
        PLAIN[:-1],
        PLAIN + b"\x00",
        header(PLAIN[FIXED_BYTES:], command=0x11),  # version 1
        header(PLAIN[FIXED_BYTES:], command=0x22),  # a command that is not known
        header(PLAIN[FIXED_BYTES:], family=0x12),  # datagrams
        header(PLAIN[FIXED_BYTES:], family=0x21),  # too short for IPv6
        header(bytes(216), family=0x31),  # a Unix socket
        header(PLAIN[FIXED_BYTES:], family=0x00),  # PROXY without addresses
        header(PLAIN[FIXED_BYTES:-1]),
        with_values(b"\x01"),
        with_values(b"\x01\x00\x05abc"),
        with_values(b"\x03\x00\x02\x00\x00"),
        header(bytes(MAX_BYTES + 1)),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(20),  # a TLS client that speaks at once
    ],
)
def test_everything_else_is_refused(wrong: bytes) -> None:
    with pytest.raises(Fault) as refused:
        parse_header(wrong)
    assert refused.value.reason is Reason.PROXY_HEADER_INVALID


def reason_of(candidate: bytes) -> Reason:
    try:
        parse_header(candidate)
    except Fault as fault:
        return fault.reason
    return Reason.GRANTED


@given(st.binary(max_size=256), st.integers(0, 27), st.integers(0, 255))
def test_no_bytes_do_anything_but_parse_or_be_refused(noise: bytes, at: int, byte: int) -> None:
    for candidate in (noise, SIGNATURE + noise, PLAIN[:at] + bytes((byte,)) + PLAIN[at + 1 :], with_values(noise)):
        assert reason_of(candidate) in {Reason.GRANTED, Reason.PROXY_HEADER_INVALID}
