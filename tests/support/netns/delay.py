"""Delays packets, for kernels without netem: a shim between two of a router's links.

    python -m tests.support.netns.delay SECONDS DEVICE

The router's rules send packets into the TUN device `DEVICE`; each comes out of it again SECONDS later and goes its way.
Their order is kept, and none is lost unless more than QUEUE wait and the device's own queue is full. Source: the
kernel's Documentation/networking/tuntap.rst.
"""

from __future__ import annotations

import fcntl
import os
import select
import struct
import sys
import time
from collections import deque
from collections.abc import Sequence

_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_PACKET = 65_536
QUEUE = 10_000


def main(words: Sequence[str]) -> None:
    seconds, device = float(words[0]), words[1]
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH22x", device.encode(), _IFF_TUN | _IFF_NO_PI))
    waiting: deque[tuple[float, bytes]] = deque()
    while True:
        left = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        if select.select([tun], [], [], left)[0] and len(waiting) < QUEUE:
            waiting.append((time.monotonic() + seconds, os.read(tun, _PACKET)))
        while waiting and waiting[0][0] <= time.monotonic():
            os.write(tun, waiting.popleft()[1])


if __name__ == "__main__":
    main(sys.argv[1:])
