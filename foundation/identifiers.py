"""Names of things: SPIFFE IDs and the node names inside them.

A SPIFFE ID (SPIFFE-ID §2) is `spiffe://<trust domain>/<kind>/<name>`. It is parsed once, at the border, into a
`SpiffeId`; nothing inside compares strings that might be spelled in two ways.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from foundation.faults import Fault
from foundation.reasons import Reason

_TRUST_DOMAIN = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,253}[a-z0-9])?", re.ASCII)
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?", re.ASCII)
_SCHEME = "spiffe://"
MAX_SPIFFE_ID_BYTES = 2048  # SPIFFE-ID §2.3


class Kind(StrEnum):
    """What an identity is."""

    NODE = "node"
    OPERATOR = "operator"
    SERVICE = "service"
    GATEWAY = "gateway"


_KINDS = frozenset(kind.value for kind in Kind)


def check_name(name: str, *, field: str = "name") -> str:
    """`name` itself, when it may name an identity, a route, a segment or a site: 1 to 63 characters of a-z, 0-9,
    dot, dash and underscore, beginning and ending with a letter or digit. Raises `Fault(MESSAGE_MALFORMED)`."""
    if not _NAME.fullmatch(name) or ".." in name:
        raise Fault(
            Reason.MESSAGE_MALFORMED,
            "use 1 to 63 of a-z, 0-9, '.', '-', '_', with a letter or digit at both ends",
            field=field,
        )
    return name


@dataclass(frozen=True, slots=True, order=True)
class SpiffeId:
    """One identity's name in one trust domain."""

    trust_domain: str
    kind: Kind
    name: str

    def __post_init__(self) -> None:
        if not _TRUST_DOMAIN.fullmatch(self.trust_domain):
            raise Fault(
                Reason.MESSAGE_MALFORMED,
                "a trust domain is lower-case letters, digits, '.', '-'",
                field="trust_domain",
            )
        check_name(self.name)

    def __hash__(self) -> int:
        return hash(self.name)  # each request looks its identity up several times; names tell almost all apart

    def __str__(self) -> str:
        return f"{_SCHEME}{self.trust_domain}/{self.kind.value}/{self.name}"

    @classmethod
    def parse(cls, text: str) -> SpiffeId:
        """The ID that `text` spells in its one canonical form. Raises `Fault(MESSAGE_MALFORMED)`."""
        parts = text.removeprefix(_SCHEME).split("/")
        if len(text) > MAX_SPIFFE_ID_BYTES or not text.startswith(_SCHEME) or len(parts) != 3:
            raise Fault(Reason.MESSAGE_MALFORMED, "not spiffe://<trust domain>/<kind>/<name>", field="spiffe_id")
        if parts[1] not in _KINDS:
            raise Fault(
                Reason.MESSAGE_MALFORMED,
                "the kind is none of node, operator, service, gateway",
                field="spiffe_id",
            )
        return cls(parts[0], Kind(parts[1]), parts[2])
