"""Where each entry of Linux's runtime measurement log begins, and what it made of PCR 10: the node cuts the log by
that, and the authority parses it.

An entry of `binary_runtime_measurements` (security/integrity/ima/ima_fs.c) is the PCR (4 octets), the template's SHA-1
(20), the length of the template's name (4) and the name, the length of the template's data (4) and the data. Integers
are little-endian, as the kernels of all our machines write them. The template `ima` has no length before its data, and
is refused: so is whatever is not framed like this.

A bank is extended with its own hash of the template's data (Linux 5.8 and later), or with ones where the SHA-1 is zero:
a violation, for the file was open for writing meanwhile.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from typing import NamedTuple

MAX_MEASUREMENTS_BYTES = 2 * 1024 * 1024
MAX_ENTRY_DATA = 16 * 1024  # a digest, a path of at most 4,096 octets, a signature
MAX_TEMPLATE_NAME = 32
RUNTIME_PCR = 10  # CONFIG_IMA_MEASURE_PCR_IDX
_HEAD = struct.Struct("<I20sI")
_SIZE = struct.Struct("<I")
_VIOLATION = bytes(20)


class Framed(NamedTuple):
    """One entry. `end` is where the next one begins."""

    pcr: int
    template_sha1: bytes
    template: bytes
    data: bytes
    end: int

    @property
    def is_violation(self) -> bool:
        return self.template_sha1 == _VIOLATION

    def extend(self, bank: str, value: bytes) -> bytes:
        """What PCR 10 of `bank` (`sha256`, …) holds after this entry, where it held `value`."""
        digest = b"\xff" * len(value) if self.is_violation else hashlib.new(bank, self.data).digest()
        return hashlib.new(bank, value + digest).digest()


def framed(raw: bytes) -> Iterator[Framed]:
    """The entries in `raw`, in order. Raises `ValueError` at the first octet that is not of a whole entry."""
    at = 0
    while at < len(raw):
        entry = next_entry(raw, at)
        if entry is None:
            raise ValueError(f"ends within the entry at octet {at}")
        yield entry
        at = entry.end


def next_entry(raw: bytes, at: int) -> Framed | None:
    """The entry that begins at octet `at`; None where `raw` ends within it. Raises `ValueError` for sizes that no
    kernel writes."""
    if len(raw) < at + _HEAD.size:
        return None
    pcr, digest, name_size = _HEAD.unpack_from(raw, at)
    name_at = at + _HEAD.size
    if not 0 < name_size <= MAX_TEMPLATE_NAME:
        raise ValueError(f"a template's name of {name_size} octets at octet {at}")
    size_at = name_at + name_size
    if len(raw) < size_at + _SIZE.size:
        return None
    (size,) = _SIZE.unpack_from(raw, size_at)
    if size > MAX_ENTRY_DATA:
        raise ValueError(f"a template's data of {size} octets at octet {at}")
    data_at = size_at + _SIZE.size
    if len(raw) < data_at + size:
        return None
    return Framed(pcr, digest, raw[name_at:size_at], raw[data_at : data_at + size], data_at + size)
