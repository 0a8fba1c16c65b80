"""Strict DER (ITU-T X.690 §10, §11): one way to write each value, no octets left over.

Parsers differ in what they forgive; what is signed here must read the same to all of them, so nothing is forgiven.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from foundation.faults import Fault
from foundation.reasons import Reason

MAX_DEPTH = 16
# What `cryptography` raises for DER that is no certificate, no request, or holds no key that it knows.
UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
_MAX_LENGTH_OCTETS = 3
_BOOLEAN, _INTEGER, _BIT_STRING, _NULL, _OID = 1, 2, 3, 5, 6
_UTC_TIME, _GENERALIZED_TIME = 0x17, 0x18
_SEQUENCE, _SET = 0x30, 0x31
_CONSTRUCTED, _CONTEXT, _HIGH_TAG = 0x20, 0x80, 0x1F


class _NotDer(Exception):
    pass


def check_der(raw: bytes, reason: Reason, path: str) -> None:
    """Refuse unless `raw` is exactly one SEQUENCE in DER, all the way down. Raises `Fault(reason)` at `path`."""
    try:
        end = _check_value(raw, 0, len(raw), 0)
    except _NotDer as error:
        raise Fault(reason, str(error), field=path) from None
    if end != len(raw):
        raise Fault(reason, f"{len(raw) - end} octets are left over", field=path)
    if raw[0] != _SEQUENCE:
        raise Fault(reason, "not a SEQUENCE", field=path)


def children(raw: bytes) -> list[bytes]:
    """The values inside the one constructed value `raw`, each with its tag and length. `raw` has passed
    `check_der`."""
    _, start, end = _header(raw, 0, len(raw))
    return [raw[first:last] for first, last in _values(raw, start, end)]


def content(raw: bytes) -> bytes:
    """What is inside the one value `raw`, which has passed `check_der`."""
    _, start, end = _header(raw, 0, len(raw))
    return raw[start:end]


def _check_value(raw: bytes, at: int, limit: int, depth: int) -> int:
    """Where the value at `at` ends."""
    tag, start, end = _header(raw, at, limit)
    if depth > MAX_DEPTH:
        raise _NotDer("nested too deeply")
    if tag & _CONSTRUCTED:
        _check_constructed(raw, tag, start, end, depth)
    else:
        check = _PRIMITIVES.get(tag)
        if check and not check(raw[start:end]):
            raise _NotDer(f"the value of tag 0x{tag:02x} at octet {at} is not spelled in DER")
    return end


def _check_constructed(raw: bytes, tag: int, start: int, end: int, depth: int) -> None:
    if tag not in (_SEQUENCE, _SET) and not tag & _CONTEXT:
        raise _NotDer(f"a string in pieces at octet {start}")
    values = []
    at = start
    while at < end:
        after = _check_value(raw, at, end, depth + 1)
        values.append(raw[at:after])
        at = after
    if tag == _SET and values != sorted(values):
        raise _NotDer(f"the SET at octet {start} is out of order")


def _values(raw: bytes, at: int, end: int) -> Iterator[tuple[int, int]]:
    while at < end:
        _, _, after = _header(raw, at, end)
        yield at, after
        at = after


def _header(raw: bytes, at: int, limit: int) -> tuple[int, int, int]:
    """Tag, start and end of the content at `at`."""
    if at + 2 > limit:
        raise _NotDer(f"ends too early, at octet {limit}")
    tag, length, start = raw[at], raw[at + 1], at + 2
    if tag & _HIGH_TAG == _HIGH_TAG:
        raise _NotDer(f"a tag of many octets at octet {at}")
    if length & 0x80:
        count = length & 0x7F
        if not 0 < count <= _MAX_LENGTH_OCTETS or start + count > limit:
            raise _NotDer(f"the length at octet {at + 1} is indefinite, too long or cut off")
        length = int.from_bytes(raw[start : start + count], "big")
        if length < 0x80 or length >> 8 * (count - 1) == 0:
            raise _NotDer(f"the length at octet {at + 1} is not the shortest")
        start += count
    if start + length > limit:
        raise _NotDer(f"the value at octet {at} ends {start + length - limit} octets too late")
    return tag, start, start + length


def _is_boolean(value: bytes) -> bool:
    return value in (b"\x00", b"\xff")


def _is_integer(value: bytes) -> bool:
    """No leading octet that says nothing (X.690 §8.3.2)."""
    return len(value) == 1 or (len(value) > 1 and int.from_bytes(value[:2], "big") >> 7 not in (0, 0x1FF))


def _is_bit_string(value: bytes) -> bool:
    """Unused bits are zero, and there are none without octets (X.690 §11.2.1)."""
    if not value or value[0] > 7:
        return False
    return value[0] == 0 if len(value) == 1 else not value[-1] & ((1 << value[0]) - 1)


def _is_oid(value: bytes) -> bool:
    """Every number in as few octets as it takes (X.690 §8.19.2)."""
    if not value or value[-1] & 0x80:
        return False
    starts = [0, *(i + 1 for i, octet in enumerate(value[:-1]) if not octet & 0x80)]
    return all(value[i] != 0x80 for i in starts)


def _matches(pattern: bytes) -> Callable[[bytes], bool]:
    compiled = re.compile(pattern)
    return lambda value: compiled.fullmatch(value) is not None


# Times as RFC 5280 §4.1.2.5 has them. Other primitive types are opaque here.
_PRIMITIVES: dict[int, Callable[[bytes], bool]] = {
    _BOOLEAN: _is_boolean,
    _INTEGER: _is_integer,
    _BIT_STRING: _is_bit_string,
    _NULL: lambda value: value == b"",
    _OID: _is_oid,
    _SEQUENCE & ~_CONSTRUCTED: lambda value: False,
    _SET & ~_CONSTRUCTED: lambda value: False,
    _UTC_TIME: _matches(rb"[0-9]{12}Z"),
    _GENERALIZED_TIME: _matches(rb"[0-9]{14}Z"),
}
