"""Paths as people write them, and the segments that policy compares.

    /version            this path
    /v3/kv/*            one more segment, whichever
    /files/**           /files itself and everything below it
    /files/             with a slash at its end, which is another path than without

A path is written decoded. What two parsers could read differently is refused: empty segments, `.`, `..`, and any of
`%;?#\\`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Any

from foundation.fields import Fields

MAX_SEGMENTS = 32
MAX_PATHS = 256
_SEGMENT = re.compile(r"[^/%;?#\\*\x00-\x20\x7f]{1,255}")


def parse_prefix(item: Fields, name: str) -> tuple[str, ...]:
    """The whole segments of the path in field `name`, without wildcards; `/` has none. Raises `Fault`."""
    text = item.text(name, "/")
    segments = _segments(item, name, text)
    if _is_wild(segments) or "" in segments:
        raise item.fault(name, "a prefix ends without slash and wildcard; it covers everything below it")
    return segments


def parse_paths(item: Fields, name: str) -> dict[str, Any]:
    """The list of paths in field `name`, as Rego compares them: `paths` are literal, `patterns` have wildcards. Raises
    `Fault`."""
    texts = item.texts(name, most=MAX_PATHS)
    if not texts:
        raise item.fault(name, "an empty list covers nothing")
    split = [_segments(item, name, text) for text in dict.fromkeys(texts)]
    wild = [segments for segments in split if _is_wild(segments)]
    return {
        "paths": [list(segments) for segments in split if not _is_wild(segments)],
        "patterns": [_pattern(segments) for segments in wild],
    }


def with_trailing_slash(covered: dict[str, Any]) -> dict[str, Any]:
    """What `parse_paths` gave, and the same with a slash at the end: for a deny, as many upstreams serve both alike."""
    slashed = [[*path, ""] for path in covered["paths"] if path and path[-1]]
    closed = [pattern["segments"] for pattern in covered["patterns"] if not pattern["open"] and pattern["segments"][-1]]
    patterns = [{"segments": [*segments, ""], "open": False} for segments in closed]
    return {"paths": covered["paths"] + slashed, "patterns": covered["patterns"] + patterns}


def _pattern(segments: tuple[str, ...]) -> dict[str, Any]:
    is_open = segments[-1] == "**"
    return {"segments": list(segments[:-1] if is_open else segments), "open": is_open}


def _is_wild(segments: Iterable[str]) -> bool:
    return any(segment in {"*", "**"} for segment in segments)


def _segments(item: Fields, name: str, text: str) -> tuple[str, ...]:
    if text == "/":
        return ()
    segments = tuple(text.removeprefix("/").split("/"))
    if not text.startswith("/") or len(segments) > MAX_SEGMENTS:
        raise item.fault(name, f"{text[:128]!r} is not an absolute path of at most {MAX_SEGMENTS} segments")
    if "**" in segments[:-1]:
        raise item.fault(name, f"{text[:128]!r}: ** stands at the end alone")
    named = segments if segments[-1] or len(segments) == 1 else segments[:-1]  # a path may end with a slash
    for segment in named:
        if segment not in {"*", "**"} and not _is_plain(segment):
            raise item.fault(name, f"{text[:128]!r}: the segment {segment[:64]!r} can be read in more than one way")
    return segments


def _is_plain(segment: str) -> bool:
    """Whether requests can hold this segment: the gateway's normaliser refuses all others."""
    spelled = segment.isprintable() and unicodedata.is_normalized("NFC", segment)
    return spelled and segment not in {".", ".."} and _SEGMENT.fullmatch(segment) is not None
