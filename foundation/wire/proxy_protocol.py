"""The PROXY protocol, version 2 (HAProxy, "The PROXY protocol", §2.2): which addresses a connection joins, told ahead
of its first byte by whoever forwards it.

Laws held here:
- version 2 alone, of TCP over IPv4 or IPv6; the text form, datagrams and Unix sockets are refused;
- a header is read to its stated length and no byte further, and that length is bounded;
- additional values (TLVs) must be well-formed, and a checksum among them must be right; nothing else of them is used.

Reads bytes, knows no socket: whom to believe is the listener's affair.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from functools import lru_cache

from foundation.faults import Fault
from foundation.reasons import Reason

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
FIXED_BYTES = 16  # signature, version and command, family, length
MAX_BYTES = 4096  # of what follows them: addresses and TLVs
LOCAL = SIGNATURE + b"\x20\x00\x00\x00"  # a connection of the proxy's own, such as a health check
_VERSION_LOCAL, _VERSION_PROXY = 0x20, 0x21
_TCP4, _TCP6 = 0x11, 0x21
_CRC32C = 0x03  # PP2_TYPE_CRC32C
_ADDRESS_BYTES = {_TCP4: 4, _TCP6: 16}


@dataclass(frozen=True, slots=True)
class Addresses:
    """The two ends of a connection as the proxy saw it: IP address and TCP port of each, both of one version."""

    source: tuple[str, int]
    destination: tuple[str, int]

    @classmethod
    def between(cls, source: tuple[str, int], destination: tuple[str, int]) -> Addresses:
        """The ends of a connection that came over one version of IP and goes on over another are told as IPv6."""
        ends = [ipaddress.ip_address(end[0]) for end in (source, destination)]
        if ends[0].version != ends[1].version:
            ends = [each if each.version == 6 else ipaddress.ip_address(f"::ffff:{each}") for each in ends]
        return cls((str(ends[0]), source[1]), (str(ends[1]), destination[1]))


def proxy_header(addresses: Addresses) -> bytes:
    """The header to send ahead of a forwarded connection."""
    ends = [ipaddress.ip_address(end[0]) for end in (addresses.source, addresses.destination)]
    family = _TCP4 if ends[0].version == 4 else _TCP6
    ports = addresses.source[1].to_bytes(2, "big") + addresses.destination[1].to_bytes(2, "big")
    block = ends[0].packed + ends[1].packed + ports
    return SIGNATURE + bytes((_VERSION_PROXY, family)) + len(block).to_bytes(2, "big") + block


def remaining(fixed: bytes) -> int:
    """How many bytes follow the first `FIXED_BYTES` of a header. Raises `Fault(PROXY_HEADER_INVALID)`."""
    if len(fixed) != FIXED_BYTES or not fixed.startswith(SIGNATURE):
        raise _invalid("no PROXY v2 header")
    if fixed[12] not in {_VERSION_LOCAL, _VERSION_PROXY}:
        raise _invalid("a version or command that is not known")
    length = int.from_bytes(fixed[14:16], "big")
    if length > MAX_BYTES:
        raise _invalid("the header is too large")
    return length


def parse_header(header: bytes) -> Addresses | None:
    """The addresses in one whole header; None for a connection of the proxy's own. Raises
    `Fault(PROXY_HEADER_INVALID)`."""
    if len(header) - FIXED_BYTES != remaining(header[:FIXED_BYTES]):
        raise _invalid("the length is wrong")
    if header[12] == _VERSION_LOCAL:
        return None  # §2.2: whatever else it says is to be ignored
    size = _ADDRESS_BYTES.get(header[13])
    if size is None:
        raise _invalid("expected TCP over IPv4 or IPv6")
    block = header[FIXED_BYTES:]
    ports = 2 * size
    if len(block) < ports + 4:
        raise _invalid("the addresses are not whole")
    _check_values(header, FIXED_BYTES + ports + 4)
    source, destination = block[:size], block[size:ports]
    return Addresses(
        (str(ipaddress.ip_address(source)), int.from_bytes(block[ports : ports + 2], "big")),
        (str(ipaddress.ip_address(destination)), int.from_bytes(block[ports + 2 : ports + 4], "big")),
    )


def _check_values(header: bytes, at: int) -> None:
    """TLVs fill the rest of the header exactly (§2.2.1), and a checksum is right (§2.2.3)."""
    while at < len(header):
        if len(header) < at + 3:
            raise _invalid("an additional value is not whole")
        begin, end = at + 3, at + 3 + int.from_bytes(header[at + 1 : at + 3], "big")
        if end > len(header):
            raise _invalid("an additional value is not whole")
        if header[at] == _CRC32C:
            blank = header[:begin] + bytes(end - begin) + header[end:]
            if end - begin != 4 or crc32c(blank) != int.from_bytes(header[begin:end], "big"):
                raise _invalid("the checksum is wrong")
        at = end


def crc32c(data: bytes) -> int:
    """CRC-32C (RFC 9260 appendix A)."""
    table, value = _crc_table(), 0xFFFFFFFF
    for byte in data:
        value = table[(value ^ byte) & 0xFF] ^ (value >> 8)
    return value ^ 0xFFFFFFFF


@lru_cache(maxsize=1)
def _crc_table() -> tuple[int, ...]:
    table = []
    for each in range(256):
        value = each
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return tuple(table)


def _invalid(detail: str) -> Fault:
    return Fault(Reason.PROXY_HEADER_INVALID, detail, field="PROXY")
