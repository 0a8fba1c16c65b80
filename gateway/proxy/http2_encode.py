"""Header lists to bytes without a table of fields (RFC 7541): each by its number in the static table, or spelled out.

A table would save bytes on the wire and cost a third of the CPU that an HTTP/2 request takes here, and memory for each
connection. Without one, no field's presence shows in the length of another (§7.1), and the client's wishes about the
table's size are of no account.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from hpack import Encoder
from hpack.table import HeaderTable

_SECRET = frozenset({b"set-cookie", b"authorization", b"www-authenticate", b"x-sallyport-decision"})
_NO_TABLE = b"\x20"  # §6.3: its size is zero from here on
_INDEXED, _NEVER_INDEXED = 0x80, 0x10  # §6.1, §6.2.3
_WHOLE = {field: index for index, field in enumerate(HeaderTable.STATIC_TABLE, 1)}
_NAMES = {name: index for index, (name, _) in reversed(list(enumerate(HeaderTable.STATIC_TABLE, 1)))}


class PlainEncoder(Encoder):
    """One connection's, in h2's place for it. Its parent's table is never made."""

    def __init__(self) -> None:
        self._begun = False

    @property
    def header_table_size(self) -> int:
        return 0

    @header_table_size.setter
    def header_table_size(self, value: int) -> None:
        """The client's wish; zero is within it."""

    def encode(self, headers: Iterable[Any], huffman: bool = False) -> bytes:
        block = b"".join([_field(name, value) for name, value in headers])
        if self._begun:
            return block
        self._begun = True
        return _NO_TABLE + block


def _field(name: bytes, value: bytes) -> bytes:
    whole = _WHOLE.get((name, value))
    if whole is not None:
        return bytes((_INDEXED | whole,))
    return _name(name) + _integer(len(value), 7) + value


@lru_cache(maxsize=1024)
def _name(name: bytes) -> bytes:
    """The beginning of a literal that is not put in a table, up to its value (§6.2.2, §6.2.3)."""
    first = _NEVER_INDEXED if name in _SECRET else 0
    index = _NAMES.get(name, 0)
    number = _integer(index, 4)
    return bytes((number[0] | first,)) + number[1:] + (b"" if index else _integer(len(name), 7) + name)


def _integer(value: int, bits: int) -> bytes:
    """`value` in a prefix of so many bits (§5.1)."""
    most = (1 << bits) - 1
    if value < most:
        return bytes((value,))
    out = [most]
    value -= most
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))
