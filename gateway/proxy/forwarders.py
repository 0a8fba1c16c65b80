"""Load balancers in front of us that say, by PROXY v2, whose connection they forward.

Laws held here:
- it is a setting that demands the header, never a look at the first bytes: a listener takes it of everybody or of
  nobody;
- only the networks of that setting are believed, and nobody else may connect; what they say is an address, for limits
  and records, and never an identity: the client proves its certificate behind the header as it would without;
- the header is read to its last byte and no further, before TLS begins.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Iterable

from foundation.faults import Fault
from foundation.reasons import Reason
from foundation.wire.proxy_protocol import FIXED_BYTES, parse_header, remaining

Source = tuple[str, int]


class Forwarders:
    """The networks whose hosts forward connections to us; with none, connections come as they are."""

    def __init__(self, networks: Iterable[str]) -> None:
        self._networks = [ipaddress.ip_network(network) for network in networks]

    def __bool__(self) -> bool:
        return bool(self._networks)

    def believe(self, address: str) -> bool:
        """Whether a connection from `address` may say whose it is."""
        found = ipaddress.ip_address(address.partition("%")[0])
        if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
            found = found.ipv4_mapped
        return any(found in network for network in self._networks)


async def read_source(accepted: socket.socket) -> Source | None:
    """Where the forwarded connection comes from; None when it is the forwarder's own, such as a health check. Raises
    `Fault(PROXY_HEADER_INVALID)` and `OSError`."""
    fixed = await _exactly(accepted, FIXED_BYTES)
    addresses = parse_header(fixed + await _exactly(accepted, remaining(fixed)))
    return None if addresses is None else addresses.source


async def _exactly(accepted: socket.socket, size: int) -> bytes:
    loop, read = asyncio.get_running_loop(), b""
    while len(read) < size:
        piece = await loop.sock_recv(accepted, size - len(read))
        if not piece:
            raise Fault(Reason.PROXY_HEADER_INVALID, "the connection ended within its PROXY v2 header")
        read += piece
    return read
