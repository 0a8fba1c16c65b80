"""Streams that outlive the certificate by which their connection came (teleport#18544).

A certificate's end must not end a stream whose node has renewed it meanwhile. What counts is the authority's word: the
TPM that holds the old certificate's key attested anew, with the same AK, and got the new one. Then what is open on the
old certificate may stay until the new one ends.

Laws held here:
- a renewal carries on what is open alone: a request that comes by a certificate that has ended is refused, whatever was
  renewed;
- it carries no further than the newest certificate, and not once that is revoked;
- one that was not heard of carries nothing: the stream ends with its certificate;
- kept is what is open, and nothing of what is not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container
from dataclasses import dataclass, field

from foundation.identity import Renewal
from gateway.proxy.identify import Peer


@dataclass(slots=True)
class _Line:
    """Certificates of one node that renewed one another: those that connections are open by, and the newest."""

    newest: str = ""
    until: float = 0.0
    open: set[str] = field(default_factory=set)


class Renewals:
    """Which certificates were renewed while connections were open by them."""

    def __init__(self) -> None:
        self._open: Counter[str] = Counter()
        self._lines: dict[str, _Line] = {}  # by each open certificate that was renewed
        self._by_newest: dict[str, _Line] = {}

    def __len__(self) -> int:
        return len(self._lines)

    def opened(self, serial: str) -> None:
        """A connection came by this certificate."""
        self._open[serial] += 1

    def closed(self, serial: str) -> None:
        """A connection that came by this certificate ended."""
        self._open[serial] -= 1
        if self._open[serial] > 0:
            return
        del self._open[serial]
        line = self._lines.pop(serial, None)
        if line is not None:
            self._leave(serial, line)

    def renewed(self, renewal: Renewal) -> None:
        """The authority says so. Hearing it twice is hearing it once."""
        old, new = renewal.old, renewal.new
        line = self._by_newest.pop(old, None) or self._lines.get(old) or _Line()
        if old in self._open:
            self._join(old, line)
        if not line.open:
            return
        if line.newest not in ("", old, new):
            return  # an older renewal than the one that is known
        others = self._by_newest.get(new, line)
        for serial in tuple(others.open):  # a certificate that two were renewed by: from here on they are one line
            self._join(serial, line)
        line.newest, line.until = new, renewal.until
        self._by_newest[new] = line

    def _join(self, serial: str, line: _Line) -> None:
        before = self._lines.get(serial)
        if before is line:
            return
        self._lines[serial] = line
        line.open.add(serial)
        if before is not None:
            self._leave(serial, before)

    def _leave(self, serial: str, line: _Line) -> None:
        line.open.discard(serial)
        if not line.open and self._by_newest.get(line.newest) is line:
            del self._by_newest[line.newest]

    def until(self, peer: Peer, revoked: Container[str]) -> float:
        """Until when what is open on the connection of `peer` may stay, by certificates alone: seconds since the Unix
        epoch. `revoked` are the serials of certificates that are."""
        line = self._lines.get(peer.serial)
        if line is None or line.newest in revoked:
            return peer.not_after
        return max(peer.not_after, line.until)
