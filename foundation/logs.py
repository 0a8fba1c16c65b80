"""Logs for operators: one line of JSON per record on standard error, without secrets.

A secret does not belong in a log at all; what stands here is the net below that rule. Fields whose name says that they
hold one, and texts that look like one, are replaced.
"""

from __future__ import annotations

import json
import logging
import math
import re
import sys
import traceback
from datetime import UTC, datetime
from typing import Any, TextIO

REDACTED = "[redacted]"
MAX_TEXT = 8192
MAX_FIELDS = 32
_SECRET_NAME = re.compile(
    r"(?:^|_)(?:password|passphrase|passwd|secret|token|authorization|cookie|credential|proof|private_key|pin)s?$", re.I
)
_SECRET_TEXT = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)"
    r"|\bsp1_[A-Za-z0-9_-]{20,}"
    r"|\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*"
    r"|(?i:\b(?:bearer|basic)\s+)[A-Za-z0-9+/=._~-]{8,}",
    re.DOTALL,
)
# What logging itself puts on a record; the rest came with `extra`.
_OWN = frozenset({*vars(logging.makeLogRecord({})), "message", "asctime", "taskName", "trace"})


class JsonFormatter(logging.Formatter):
    """Writes time, level, logger, message; `trace` when the record has one; what came with `extra` as `fields`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _clean(record.getMessage()),
        }
        if trace := getattr(record, "trace", ""):
            line["trace"] = _clean(str(trace))
        if fields := _fields(record):
            line["fields"] = fields
        if record.exc_info:
            line["exception"] = _clean("".join(traceback.format_exception(*record.exc_info))[-MAX_TEXT:])
        return json.dumps(line)


def configure_logging(level: str, stream: TextIO | None = None) -> logging.Handler:
    """Send all of the process's logs through `JsonFormatter`, instead of where they went; `stream` is standard error
    unless given. `level` is a name such as `info`."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    return handler


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    names = [name for name in vars(record) if name not in _OWN]
    return {name: _value(name, getattr(record, name)) for name in names[:MAX_FIELDS]}


def _value(name: str, value: Any) -> Any:
    if _SECRET_NAME.search(name):
        return REDACTED
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, dict):
        return {str(key): _value(str(key), item) for key, item in list(value.items())[:MAX_FIELDS]}
    if isinstance(value, bytes):  # raw bytes may be anything
        return f"{len(value)} bytes"
    return _clean(str(value))


def _clean(text: str) -> str:
    return _SECRET_TEXT.sub(REDACTED, text[:MAX_TEXT])
