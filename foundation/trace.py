"""Where a request stands in a distributed trace, as the `traceparent` header says it (W3C Trace Context §3.2). Pure."""

from __future__ import annotations

import re
from typing import NamedTuple

from foundation.randomness import RandomBytes

HEADER = "traceparent"
MAX_HEADER = 512
_HEADER = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII)
_SAMPLED = 0x01


class TraceContext(NamedTuple):
    """One span's place. `trace_id` is 32 hex digits, `span_id` 16; neither is all zeros."""

    trace_id: str
    span_id: str
    sampled: bool

    @classmethod
    def parse(cls, header: str | None) -> TraceContext | None:
        """What the header says; None when there is none or it breaks a rule, for then a new trace begins (§4.3)."""
        match = _HEADER.fullmatch(header) if header and len(header) <= MAX_HEADER else None
        if match is None:
            return None
        version, trace_id, span_id, flags, more = match.groups()
        if version == "ff" or (version == "00" and more) or not trace_id.strip("0") or not span_id.strip("0"):
            return None
        return cls(trace_id, span_id, bool(int(flags, 16) & _SAMPLED))

    @classmethod
    def begin(cls, random: RandomBytes, *, sampled: bool = False) -> TraceContext:
        """A new trace."""
        raw = random.take(24).hex()
        return cls(raw[:31] + "1", raw[32:47] + "1", sampled)

    def header(self) -> str:
        """The header's value for the next hop."""
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.sampled else '00'}"
