"""What a host's link carries, as the kernel shows it to packet sockets: the flows, seen from that host.

The reader is small and knows Ethernet, IPv4, IPv6, TCP, UDP and little else; what it does not know it names by its
number, so that nothing can pass unseen. Outgoing packets are seen after the host's own firewall, incoming ones before
it. Sources: packet(7); RFC 791, RFC 8200, RFC 9293, RFC 768, RFC 4861, RFC 3810.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from tests.support.netns.network import LINK, Host

_ETH_P_ALL, _ETH_IPV4, _ETH_IPV6, _ETH_ARP = 0x0003, 0x0800, 0x86DD, 0x0806
_SOL_PACKET, _PACKET_STATISTICS, _PACKET_OUTGOING = 263, 6, 4
_PROTOCOLS = {6: "tcp", 17: "udp", 1: "icmp", 58: "icmpv6"}
_ICMPV6 = dict.fromkeys(range(133, 138), "neighbour discovery") | dict.fromkeys(
    (130, 131, 132, 143), "multicast listeners"
)
_BUFFER = 32 << 20  # bytes: a burst waits there while the reader is not running
_SNAP = 128  # bytes of each packet that are kept: all heads


@dataclass(frozen=True, slots=True, order=True)
class Flow:
    """One direction of a conversation. Ports are 0 where the protocol has none."""

    outgoing: bool
    protocol: str
    source: str
    source_port: int
    target: str
    target_port: int

    @property
    def neighbourly(self) -> bool:
        """Whether it is about the link itself, and goes no further than its other end."""
        return self.protocol in {"arp", "neighbour discovery", "multicast listeners"}


class Capture:
    """Counts the packets of each flow while it runs. Use `capturing`."""

    def __init__(self, host: Host, link: str = LINK) -> None:
        self._counts: Counter[Flow] = Counter()
        self._guard = threading.Lock()
        with host.inside():
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        self._socket.setsockopt(socket.SOL_SOCKET, 33, _BUFFER)  # SO_RCVBUFFORCE
        self._socket.bind((link, _ETH_P_ALL))
        self._socket.settimeout(0.05)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._read, name=f"capture {host.name}")
        self._thread.start()

    @property
    def packets(self) -> Counter[Flow]:
        """How many of each flow there were until now."""
        with self._guard:
            return self._counts.copy()

    def end(self) -> None:
        """Read what has come, and stop. A capture that missed packets proves nothing, and fails."""
        self._ended.set()
        self._thread.join()
        _, dropped = struct.unpack("II", self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))
        self._socket.close()
        assert dropped == 0, f"the capture missed {dropped} packets"

    def _read(self) -> None:
        while True:
            try:
                packet, (_, _, kind, *_) = self._socket.recvfrom(_SNAP)
            except TimeoutError:
                if self._ended.is_set():
                    return
                continue
            flow = read_flow(packet, outgoing=kind == _PACKET_OUTGOING)
            with self._guard:
                self._counts[flow] += 1


@contextlib.contextmanager
def capturing(host: Host, link: str = LINK) -> Iterator[Capture]:
    """The packets of its link, or of `lo`, from now on. After the block the capture is complete."""
    capture = Capture(host, link)
    try:
        yield capture
    finally:
        capture.end()


def read_flow(packet: bytes, *, outgoing: bool) -> Flow:
    """Whose packet an Ethernet frame is."""
    (kind,) = struct.unpack_from("!H", packet, 12)
    if kind == _ETH_IPV4:
        return _ipv4(packet[14:], outgoing)
    if kind == _ETH_IPV6:
        return _ipv6(packet[14:], outgoing)
    return Flow(outgoing, "arp" if kind == _ETH_ARP else f"ethertype {kind:#06x}", "", 0, "", 0)


def _ipv4(packet: bytes, outgoing: bool) -> Flow:
    head, later = (packet[0] & 0x0F) * 4, struct.unpack_from("!H", packet, 6)[0] & 0x1FFF
    source, target = (str(ipaddress.IPv4Address(packet[at : at + 4])) for at in (12, 16))
    rest = b"" if later else packet[head:]  # a later fragment has no ports
    return _flow(outgoing, packet[9], source, target, rest)


def _ipv6(packet: bytes, outgoing: bool) -> Flow:
    source, target = (str(ipaddress.IPv6Address(packet[at : at + 16])) for at in (8, 24))
    protocol, rest = packet[6], packet[40:]
    while protocol in {0, 43, 60} and len(rest) >= 8:  # hop-by-hop, routing, destination options
        protocol, rest = rest[0], rest[8 + rest[1] * 8 :]
    return _flow(outgoing, protocol, source, target, rest)


def _flow(outgoing: bool, number: int, source: str, target: str, rest: bytes) -> Flow:
    protocol = _PROTOCOLS.get(number, f"protocol {number}")
    if protocol == "icmpv6":
        protocol = _ICMPV6.get(rest[0] if rest else 0, protocol)
    ports = struct.unpack_from("!HH", rest) if protocol in {"tcp", "udp"} and len(rest) >= 4 else (0, 0)
    return Flow(outgoing, protocol, source, ports[0], target, ports[1])
