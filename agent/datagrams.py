"""A stream of datagrams and one local correspondent, joined. What there is no room for is dropped, as UDP does."""

from __future__ import annotations

from collections.abc import Callable

from foundation.clock import Clock
from foundation.reasons import Reason
from foundation.tunnel import Stream


class DatagramSplice:
    """The stream's user. `deliver` sends a datagram to the correspondent; `gone` is told once, when it is over.
    `used_at` is when one last came or went (monotonic seconds), `dropped` counts what found no room."""

    def __init__(
        self, stream: Stream, deliver: Callable[[bytes], None], gone: Callable[[], None], clock: Clock
    ) -> None:
        self.stream = stream
        self.used_at = clock.monotonic()
        self.dropped = 0
        self._deliver = deliver
        self._gone: Callable[[], None] | None = gone
        self._clock = clock

    def send(self, data: bytes) -> None:
        """Send a datagram of the correspondent's over the stream."""
        self.used_at = self._clock.monotonic()
        if not self.stream.send_datagram(data):
            self.dropped += 1

    def end(self) -> None:
        """Nobody has used it for long."""
        self.stream.end()
        self._finish()

    def break_off(self, reason: Reason) -> None:
        """End both sides, now."""
        self.stream.reset(reason)
        self._finish()

    # --- the stream -----------------------------------------------------------------------------------------

    def accepted(self, document: bytes) -> None: ...

    def refused(self, document: bytes) -> None: ...

    def received(self, data: bytes) -> None:
        self.break_off(Reason.TUNNEL_MALFORMED)

    def datagram_received(self, data: bytes) -> None:
        if self._gone is not None:
            self.used_at = self._clock.monotonic()
            self._deliver(data)

    def sent(self, size: int) -> None: ...

    def ended(self) -> None:
        self.end()

    def over(self, reason: Reason) -> None:
        self._finish()

    def _finish(self) -> None:
        gone, self._gone = self._gone, None
        if gone is not None:
            gone()
