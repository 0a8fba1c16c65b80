"""A request's target to the one canonical request that policy decides and the upstream gets.

Law held here: what is authorised is what is forwarded, byte for byte. So nothing is repaired: a target that any
upstream might read in another way than policy (encoded separators, dots, parameters, empty segments, what decodes
twice) is refused with `PATH_AMBIGUOUS`.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from urllib.parse import unquote_to_bytes

from foundation.faults import Fault
from foundation.reasons import Reason
from policies.model import ACTIONS, CanonicalRequest

_ACTIONS = {method.encode(): action for method, action in ACTIONS.items()}
_PLAIN_PATH = re.compile(rb"(?:/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+/?")
# RFC 3986 §3.3 and §3.4 without `;`, whose parameters some upstreams cut off.
_PATH = re.compile(rb"/(?:[A-Za-z0-9._~!$&'()*+,=:@/-]|%[0-9A-Fa-f]{2})*")
_QUERY = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+,=:@/?-]|%[0-9A-Fa-f]{2})*")
_DECODES_AGAIN = re.compile(r"%[0-9A-Fa-f]{2}")
_SEPARATORS = frozenset("/\\;#?")
_MEMO_BYTES = 512
MAX_SEGMENTS = 128
MAX_PARAMETERS = 256


def canonical(method: bytes, target: bytes, host: bytes, upgrade: bytes) -> CanonicalRequest:
    """The canonical request. `path` has the decoded segments, the last one empty when the path ends with a slash
    (`/` itself is no segment at all); `query` the decoded pairs in order, `+` being a space. Raises
    `Fault(PATH_AMBIGUOUS | METHOD_UNSUPPORTED)`."""
    if len(target) > _MEMO_BYTES:
        return _canonical(method, target, host, upgrade)
    return _remembered(method, target, host, upgrade)


def _canonical(method: bytes, target: bytes, host: bytes, upgrade: bytes) -> CanonicalRequest:
    action = _ACTIONS.get(method)
    if action is None:
        raise Fault(Reason.METHOD_UNSUPPORTED, field="method")
    path, _, query = target.partition(b"?")
    return CanonicalRequest(
        method=method.decode("ascii"),
        action="create" if upgrade else action,
        host=host.decode("ascii"),
        path=_segments(path),
        query=_pairs(query),
        upgrade=upgrade.decode("ascii"),
        target=target,
    )


_remembered = lru_cache(maxsize=4096)(_canonical)


def _segments(path: bytes) -> tuple[str, ...]:
    if path == b"/":
        return ()
    parts = path.split(b"/")[1:]
    if len(parts) > MAX_SEGMENTS:
        raise _ambiguous("too many segments")
    if _PLAIN_PATH.fullmatch(path):
        return tuple(part.decode("ascii") for part in parts)
    if not _PATH.fullmatch(path):
        raise _ambiguous("expected an absolute path of RFC 3986's characters, without ';'")
    return (*(_segment(part) for part in parts[:-1]), _segment(parts[-1], last=True))


def _segment(part: bytes, *, last: bool = False) -> str:
    text = _text(part)
    if not text and not last:
        raise _ambiguous("an empty segment")
    if text in {".", ".."} or _SEPARATORS.intersection(text) or _DECODES_AGAIN.search(text):
        raise _ambiguous("a dot segment, an encoded separator or a twice encoded byte")
    if not text.isascii():
        _check_unicode(text)
    elif not text.isprintable():
        raise _ambiguous("a control character")
    return text


def _check_unicode(text: str) -> None:
    """Refuse what a normalising upstream would turn into another segment."""
    compatible = unicodedata.normalize("NFKC", text)
    if not unicodedata.is_normalized("NFC", text) or not text.isprintable():
        raise _ambiguous("a character that is not printable, or not in normal form C")
    if compatible in {".", ".."} or _SEPARATORS.intersection(compatible) or "%" in compatible:
        raise _ambiguous("a character that stands for a separator")


def _pairs(query: bytes) -> tuple[tuple[str, str], ...]:
    if not query:
        return ()
    if not _QUERY.fullmatch(query):
        raise _ambiguous("expected a query of RFC 3986's characters, without ';'")
    parts = query.split(b"&")
    if len(parts) > MAX_PARAMETERS:
        raise _ambiguous("too many parameters")
    return tuple(_pair(part) for part in parts if part)


def _pair(part: bytes) -> tuple[str, str]:
    name, _, value = part.replace(b"+", b" ").partition(b"=")
    return _text(name), _text(value)


def _text(part: bytes) -> str:
    """Percent-decoded once, as UTF-8 (RFC 3629: no overlong forms, no surrogates)."""
    try:
        text = unquote_to_bytes(part).decode("utf-8")
    except UnicodeDecodeError:
        raise _ambiguous("an escape that is not UTF-8") from None
    if "\0" in text:
        raise _ambiguous("a NUL")
    return text


def _ambiguous(detail: str) -> Fault:
    return Fault(Reason.PATH_AMBIGUOUS, detail, field="target")
