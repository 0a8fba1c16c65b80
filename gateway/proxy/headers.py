"""Which header fields pass a gateway, which end at it, and which only a gateway may set. Both directions, one table.

Laws held here:
- identity comes from the certificate alone: a field that any upstream might take for an identity, for the address of a
  caller, or for another method or path than the one decided, is removed under every spelling of its name (case, `-`,
  `_` and `.` are one name, for CGI and its heirs fold them: CVE-2026-88011);
- hop-by-hop fields end here, those that `Connection` names too (RFC 9110 §7.6.1);
- `Connection` may not name a field that an upstream decides by: removing it would change the request's meaning
  (CVE-2024-45410), so that is refused;
- a trailer never becomes a header, and passes only where it could have stood before the body and decided nothing there:
  what frames, routes, authenticates, conditions, identifies or says how a body is to be read or kept is dropped
  (RFC 9110 §6.5.1), for some upstream merges the two. Trailers that are no fields, or too many, are refused.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from enum import Enum, auto
from functools import lru_cache
from typing import NamedTuple

from foundation.faults import Fault
from foundation.reasons import Reason

Field = tuple[bytes, bytes]


class Role(Enum):
    """What a gateway does with a field of this name."""

    PASS = auto()
    SINGLE = auto()  # passes, at most once
    FRAMING = auto()  # read by us, at most once, and written anew
    HOP = auto()  # read by us and ends here, or is written anew
    IDENTITY = auto()  # ends here unread


class Sorted(NamedTuple):
    """A header section, sorted. `passed` keeps order and spelling; `control` is what the gateway itself reads: names in
    lower case, values without white space around them, lists joined by commas."""

    passed: list[Field]
    control: dict[bytes, bytes]


PASS = Role.PASS
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}")
_FRAMING = frozenset({b"host", b"content-length", b"transfer-encoding", b"expect"})
_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authorization",
        b"proxy-authenticate",
        b"proxy-authentication-info",
        b"te",
        b"trailer",
        b"upgrade",
        b"http2-settings",
        b"traceparent",
        b"tracestate",
    }
)
# What may stand once and decides something at the upstream.
_SINGLE = frozenset({b"authorization", b"content-type", b"sec-websocket-key", b"origin", b"range"})
# What `Connection` may not name, besides everything that is no PASS.
_MEANINGFUL = frozenset(
    {
        b"cookie",
        b"set-cookie",
        b"content-encoding",
        b"content-range",
        b"location",
        b"cache-control",
        b"vary",
        b"www-authenticate",
        b"via",
        b"if-match",
        b"if-none-match",
        b"if-modified-since",
        b"if-unmodified-since",
        b"sec-websocket-accept",
        b"sec-websocket-protocol",
        b"sec-websocket-version",
        b"sec-websocket-extensions",
    }
)
_IDENTITY_NAMES = frozenset(
    {
        b"forwarded",
        b"client-cert",
        b"client-cert-chain",
        b"client-ip",
        b"true-client-ip",
        b"x-client-ip",
        b"x-cluster-client-ip",
        b"x-real-ip",
        b"x-host",
        b"x-user",
        b"x-username",
        b"x-user-id",
        b"x-user-name",
        b"x-user-email",
        b"x-user-groups",
        b"x-user-roles",
        b"x-groups",
        b"x-email",
        b"x-role",
        b"x-roles",
        b"x-subject",
        b"x-principal",
        b"x-identity",
        b"x-tenant-id",
        b"x-original-url",
        b"x-original-uri",
        b"x-original-host",
        b"x-original-method",
        b"x-original-forwarded-for",
        b"x-rewrite-url",
        b"x-http-method",
        b"x-http-method-override",
        b"x-method-override",
        b"x-http-host-override",
    }
)
_IDENTITY_PREFIXES = (
    b"x-sallyport-",
    b"x-forwarded-",
    b"x-remote-",
    b"remote-",
    b"x-auth-request-",
    b"x-auth-user",
    b"x-auth-group",
    b"x-auth-email",
    b"x-authenticated-",
    b"x-authentik-",
    b"x-goog-authenticated-",
    b"x-goog-iap-",
    b"x-ms-client-",
    b"x-amzn-oidc-",
    b"x-amzn-mtls-",
    b"x-envoy-",
    b"x-spiffe-",
    b"x-client-cert",
    b"x-client-verify",
    b"x-client-dn",
    b"x-client-subject",
    b"x-ssl-",
    b"x-tls-client-",
    b"x-webauth-",
    b"x-consumer-",
    b"x-credential-",
    b"x-pomerium-",
    b"x-vouch-",
    b"x-impersonate-",
    b"ssl-client-",
    b"impersonate-",
    b"tailscale-",
    b"cf-access-",
    b"cf-connecting-",
    b"teleport-",
)
_MAX_CONTROL_BYTES = 1024
MAX_TRAILERS = 32
MAX_TRAILER_BYTES = 8192
# No trailers, besides everything that is no PASS; names with `_` and `.` folded to `-`.
_NEVER_TRAILERS = _MEANINGFUL | {
    b"age",
    b"alt-svc",
    b"clear-site-data",
    b"cookie2",
    b"date",
    b"early-data",
    b"expires",
    b"from",
    b"link",
    b"max-forwards",
    b"pragma",
    b"referer",
    b"refresh",
    b"retry-after",
    b"set-cookie2",
    b"strict-transport-security",
    b"user-agent",
    b"warning",
}
_NEVER_TRAILERS_PREFIXES = (
    b"accept",
    b"access-control-",
    b"authentication-",
    b"content-",
    b"cross-origin-",
    b"if-",
    b"proxy-",
    b"sec-",
    b"x-api-",
    b"x-auth",
    b"x-content-",
    b"x-csrf",
    b"x-xsrf",
)
_MADE_FOR_TRAILERS = frozenset({b"content-digest"})  # RFC 9530 §6


@lru_cache(maxsize=4096)
def role(name: bytes) -> tuple[Role, bytes]:
    """The role of the field called `name`, and its name in lower case. Raises `Fault(REQUEST_MALFORMED)` when it is no
    token (RFC 9110 §5.1)."""
    if not _TOKEN.fullmatch(name):
        raise Fault(Reason.REQUEST_MALFORMED, "a field name is not a token", field="headers")
    lower = name.lower()
    folded = lower.replace(b"_", b"-").replace(b".", b"-")
    if folded in _IDENTITY_NAMES or folded.startswith(_IDENTITY_PREFIXES):
        return Role.IDENTITY, lower
    if lower in _FRAMING:
        return Role.FRAMING, lower
    if lower in _HOP:
        return Role.HOP, lower
    if folded in _FRAMING or folded in _HOP or folded in _SINGLE - {lower}:
        return Role.IDENTITY, lower  # an alias such as Transfer_Encoding: for some upstream it is the real one
    return (Role.SINGLE if lower in _SINGLE else Role.PASS), lower


def sort(fields: Iterable[Field], ambiguous: Reason) -> Sorted:
    """Sort a header section. Raises `Fault(ambiguous)` when a field that may stand once stands twice, or `Connection`
    names what must not be removed."""
    passed: list[Field] = []
    control: dict[bytes, bytes] = {}
    singles: set[bytes] | None = None
    for name, value in fields:
        kind, lower = role(name)
        if kind is PASS:
            passed.append((name, value))
        elif kind is Role.SINGLE:
            singles = singles or set()
            if lower in singles:
                raise _twice(lower, ambiguous)
            singles.add(lower)
            passed.append((name, value))
        elif kind is not Role.IDENTITY:
            _control(control, kind, lower, value.strip(b" \t"), ambiguous)
    named = control.get(b"connection")
    if named is not None:
        passed = _without_nominated(passed, named, ambiguous)
    return Sorted(passed, control)


def trailers(fields: Sequence[Field], nominated: Collection[bytes], malformed: Reason) -> list[Field]:
    """What passes of a trailer section (RFC 9110 §6.5), values without white space around them. `nominated`: what the
    head's `Connection` names ends here (§7.6.1). Raises `Fault(malformed)`."""
    if len(fields) > MAX_TRAILERS or sum([len(name) + len(value) for name, value in fields]) > MAX_TRAILER_BYTES:
        raise Fault(malformed, "the trailers are too large", field="body")
    passed = []
    for name, value in fields:
        try:
            kind, lower = role(name)
        except Fault as fault:
            raise Fault(malformed, fault.detail, field="body") from None
        if kind is PASS and lower not in nominated and _may_be_a_trailer(lower):
            passed.append((name, value.strip(b" \t")))
    return passed


def _may_be_a_trailer(lower: bytes) -> bool:
    folded = lower.replace(b"_", b"-").replace(b".", b"-")
    never = folded in _NEVER_TRAILERS or folded.startswith(_NEVER_TRAILERS_PREFIXES)
    return not never or lower in _MADE_FOR_TRAILERS


def value_of(fields: Iterable[Field], lower: bytes) -> bytes:
    """The first value of the field with this name in lower case; empty where there is none."""
    return next((value.strip(b" \t") for name, value in fields if name.lower() == lower), b"")


def tokens(value: bytes) -> list[bytes]:
    """The members of a comma-separated list (RFC 9110 §5.6.1), in lower case."""
    return [each for part in value.split(b",") if (each := part.strip(b" \t").lower())]


def _control(control: dict[bytes, bytes], kind: Role, lower: bytes, value: bytes, ambiguous: Reason) -> None:
    before = control.get(lower)
    if before is not None and kind is Role.FRAMING:
        raise _twice(lower, ambiguous)
    control[lower] = value if before is None else before + b"," + value
    if len(control[lower]) > _MAX_CONTROL_BYTES:
        raise Fault(ambiguous, "a field that the gateway reads is too long", field=lower.decode())


def _without_nominated(passed: list[Field], named: bytes, ambiguous: Reason) -> list[Field]:
    nominated = set(tokens(named)) - {b"close", b"keep-alive", b"upgrade", b"te"}
    if not nominated:
        return passed
    for name in nominated:
        if not _TOKEN.fullmatch(name) or role(name)[0] is not Role.PASS or name in _MEANINGFUL:
            raise Fault(ambiguous, "Connection names a field that must not be removed", field="connection")
    return [(name, value) for name, value in passed if name.lower() not in nominated]


def _twice(lower: bytes, ambiguous: Reason) -> Fault:
    return Fault(ambiguous, "this field may stand once", field=lower.decode())
