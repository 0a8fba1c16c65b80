"""What a decision log has on disk, read by tests."""

from __future__ import annotations

import gzip
from pathlib import Path

from foundation.decisionlog.segments import CLOSED_SUFFIX


def read_segment(path: Path) -> bytes:
    """The whole lines of a segment, open or closed."""
    raw = path.read_bytes()
    lines = gzip.decompress(raw) if path.name.endswith(CLOSED_SUFFIX) else raw
    return lines[: lines.rfind(b"\n") + 1]  # a writer may be at work
