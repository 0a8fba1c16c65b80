"""Where an enrolment token is read from: a file or standard input, never the command line, which other users read."""

from __future__ import annotations

import sys
from pathlib import Path

from foundation.files import read_secret
from foundation.wire.enrolment import Token

_MAX_BYTES = 1024


def read_token(path: Path) -> Token:
    """The token in the file, mode 0600, or from standard input for `-`. Raises `Fault(FILE_UNREADABLE |
    FILE_MODE_UNSAFE | TOKEN_MALFORMED)`."""
    raw = sys.stdin.buffer.read(_MAX_BYTES) if str(path) == "-" else read_secret(path, max_bytes=_MAX_BYTES)
    return Token.parse(raw.decode("ascii", "replace").strip())
