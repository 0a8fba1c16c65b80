"""Which gateways hold a node's tunnel: what one entry of hot state says, and how a claim changes it. Pure.

Laws held here:
- of one gateway there is one claim of a node, the newest that a living process made: an older one neither replaces nor
  outlives it;
- what a process claimed is void once that process is not alive, and goes with the next change of the entry;
- a claim of another gateway that is alive is never touched: a node may have tunnels to several;
- an entry is bounded: of a node with tunnels to too many gateways, the later ones are not told.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from foundation.faults import Fault
from foundation.fields import Fields
from foundation.identifiers import SpiffeId
from foundation.reasons import Reason

MOST_CLAIMS = 8
MAX_RELAY = 262  # a DNS name (RFC 1035 §2.3.4), a colon and a port
_MAX_ENTRY_BYTES = 32 * 1024


@dataclass(frozen=True, slots=True)
class Claim:
    """One gateway's word that it holds a node's tunnel. `relay` is where other gateways reach it, `host:port`;
    `incarnation` names the one process that said it; `epoch` is that of the gateway's own table (`SiblingTable`), by
    which the gateway refuses whoever comes with an older claim."""

    gateway: SpiffeId
    relay: str
    incarnation: str
    epoch: int


def with_claim(claims: Sequence[Claim], own: Claim, alive: Collection[str]) -> tuple[Claim, ...] | None:
    """The entry with `own` in it, `alive` being the incarnations that are; None when it cannot stand there: a newer
    claim of the same gateway does, or there are too many."""
    others = []
    for claim in claims:
        if claim.incarnation == own.incarnation or claim.incarnation not in alive:
            continue
        if claim.gateway != own.gateway:
            others.append(claim)
        elif claim.epoch > own.epoch:
            return None
    return (*others, own) if len(others) < MOST_CLAIMS else None


def without_claims_of(claims: Sequence[Claim], incarnation: str, alive: Collection[str]) -> tuple[Claim, ...]:
    """The entry without what this process claimed, and without what those claimed that are no more."""
    return tuple(claim for claim in claims if claim.incarnation != incarnation and claim.incarnation in alive)


def living(claims: Sequence[Claim], alive: Collection[str], own_gateway: SpiffeId) -> tuple[Claim, ...]:
    """The claims that count: of each gateway its newest that is alive. That of `own_gateway` comes first."""
    newest: dict[SpiffeId, Claim] = {}
    for claim in claims:
        held = newest.get(claim.gateway)
        if claim.incarnation in alive and (held is None or claim.epoch > held.epoch):
            newest[claim.gateway] = claim
    return tuple(sorted(newest.values(), key=lambda claim: (claim.gateway != own_gateway, str(claim.gateway))))


def encode(claims: Sequence[Claim]) -> bytes | None:
    """The entry's value; None where nobody claims."""
    rows = [
        {"gateway": str(claim.gateway), "relay": claim.relay, "incarnation": claim.incarnation, "epoch": claim.epoch}
        for claim in claims
    ]
    return json.dumps({"claims": rows}, separators=(",", ":")).encode() if rows else None


def decode(raw: bytes | None) -> tuple[Claim, ...]:
    """What an entry's value says. One that is not well-formed says nothing."""
    if raw is None:
        return ()
    try:
        fields = Fields.from_json(raw, "presence", Reason.MESSAGE_MALFORMED, max_bytes=_MAX_ENTRY_BYTES)
        claims = fields.each("claims", _claim, most=MOST_CLAIMS)
        fields.finish()
    except Fault:
        return ()
    return claims


def _claim(fields: Fields) -> Claim:
    claim = Claim(
        SpiffeId.parse(fields.text("gateway")),
        fields.text("relay", max_length=MAX_RELAY),
        fields.text("incarnation", max_length=64),
        fields.integer("epoch"),
    )
    fields.finish()
    return claim
