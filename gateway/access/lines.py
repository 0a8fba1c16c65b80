"""What a line of the access log says, in each format. Pure values.

Laws held here:
- one request is one line: whatever a client sent is escaped, so that it can neither end a line nor a field;
- a query's values are not in it, unless the settings say so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import NamedTuple

from gateway.access.settings import Format, QueryPart

MAX_TEXT = 2048
_MASKED = b"***"
_VALUES = re.compile(rb"=[^&]*")
# What would end a field or a line of the text formats, or is no printable ASCII.
_UNSAFE = re.compile(r"[^ !#-\[\]-~]")
_to_json = json.JSONEncoder(separators=(",", ":"), ensure_ascii=True).encode


class Access(NamedTuple):
    """One request that ended. `at` is when it began, in seconds since the Unix epoch; `seconds` how long it took; sizes
    in bytes, of bodies alone; `status` 0 when no answer went out. Texts are empty where they do not apply."""

    at: float
    seconds: float
    address: str
    identity: str
    method: bytes
    target: bytes
    protocol: str
    status: int
    received: int
    sent: int
    route: str
    reason: str
    decision: str
    upstream: str
    trace: str
    referer: bytes
    agent: bytes


def line_of(form: Format, query: QueryPart) -> Callable[[Access], bytes]:
    """What makes a line, its newline included, of this format."""
    make = {Format.JSON: _json, Format.COMMON: _common, Format.COMBINED: _combined}[form]
    return lambda access: make(access, shown(access.target, query)).encode("ascii") + b"\n"


def shown(target: bytes, query: QueryPart) -> str:
    """`target` as it may stand in a log. A name without a value may be a secret as well: it is masked as one."""
    path, mark, rest = target.partition(b"?")
    if mark and query is QueryPart.MASK:
        rest = b"&".join(_VALUES.sub(b"=" + _MASKED, each) if b"=" in each else _MASKED for each in rest.split(b"&"))
    shown = path + mark + rest if query is not QueryPart.DROP else path
    return shown[:MAX_TEXT].decode("latin-1")


def _json(access: Access, target: str) -> str:
    return _to_json(
        {
            "at": datetime.fromtimestamp(access.at, UTC).isoformat(timespec="milliseconds"),
            "seconds": round(access.seconds, 6),
            "address": access.address,
            "identity": access.identity,
            "method": _text(access.method),
            "target": target,
            "protocol": access.protocol,
            "status": access.status,
            "received": access.received,
            "sent": access.sent,
            "route": access.route,
            "reason": access.reason,
            "decision": access.decision,
            "upstream": access.upstream,
            "trace": access.trace,
            "referer": shown(access.referer, QueryPart.MASK),
            "agent": _text(access.agent),
        }
    )


def _common(access: Access, target: str) -> str:
    """`host - identity [time] "request" status bytes`."""
    at = datetime.fromtimestamp(access.at, UTC).strftime("%d/%b/%Y:%H:%M:%S +0000")
    request = _escaped(f"{_text(access.method) or '-'} {target or '-'} {access.protocol}")
    who = f"{access.address or '-'} - {access.identity or '-'}"
    return f'{who} [{at}] "{request}" {access.status or "-"} {access.sent or "-"}'


def _combined(access: Access, target: str) -> str:
    referer, agent = shown(access.referer, QueryPart.MASK), _text(access.agent)
    return f'{_common(access, target)} "{_escaped(referer) or "-"}" "{_escaped(agent) or "-"}"'


def _text(raw: bytes) -> str:
    return raw[:MAX_TEXT].decode("latin-1")


def _escaped(text: str) -> str:
    return _UNSAFE.sub(lambda match: f"\\x{ord(match[0]):02x}", text)
