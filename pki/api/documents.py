"""The JSON that the authority's API speaks: our values as documents, and what callers send as values.

Bytes are lower-case hex, times are seconds since the Unix epoch.
"""

from __future__ import annotations

import base64
from typing import Any

from foundation.api import Call
from foundation.faults import Fault
from foundation.fields import Fields
from foundation.identifiers import Kind, SpiffeId, check_name
from foundation.identity import State
from foundation.reasons import Reason
from foundation.wire.changes import record_document
from pki.authority import Reach
from pki.entries import Entry
from pki.inventory import Description, Filter
from pki.ledger import Certificate
from pki.revocation_reason import RevocationReason
from pki.tokens import TokenRecord

DEFAULT_PAGE, MAX_PAGE = 100, 1000
PAGING = ("after", "limit")
FILTERS = ("kind", "state", "tier", "region", "site", "segment")
_KINDS = tuple(kind.value for kind in Kind)


def entry_document(entry: Entry) -> dict[str, Any]:
    """One inventory entry."""
    record = entry.record
    named = {"kind": record.id.kind.value, "name": record.id.name}
    return (
        record_document(record)
        | named
        | {
            "attestation": entry.posture.attestation.value,
            "verdict": entry.posture.verdict.value,
            "attested_until": entry.attested_until,
            "latched": entry.latched,
            "ek_sha256": entry.ek_sha256.hex(),
            "ak_name": entry.ak_name.hex(),
            "current_serial": entry.current_serial,
            "created_at": entry.created_at,
            "updated_at": entry.updated_at,
        }
    )


def certificate_document(row: Certificate) -> dict[str, Any]:
    """One certificate's row; `pem` is empty until it is issued."""
    return {
        "serial": row.serial,
        "identity": str(row.identity),
        "profile": row.profile,
        "step": row.step.value,
        "not_before": row.not_before,
        "not_after": row.not_after,
        "issued_at": row.issued_at,
        "pem": pem(row.certificate) if row.certificate else "",
    }


def reach_document(reach: Reach) -> dict[str, Any]:
    """How far a revocation has come."""
    behind = [{"id": str(each.gateway), "number": each.number, "heard": each.heard or None} for each in reach.behind]
    return {"number": reach.number, "acknowledged": reach.acknowledged, "unacknowledged": behind}


def token_document(one: TokenRecord) -> dict[str, Any]:
    """One token, without its secret."""
    return {
        "token_id": one.token_id.hex(),
        "identity": str(one.identity),
        "state": one.state,
        "minted_by": one.minted_by,
        "minted_at": one.minted_at,
        "expires_at": one.expires_at,
    }


def pem(der: bytes) -> str:
    """A certificate in PEM (RFC 7468)."""
    lines = base64.encodebytes(der).decode().replace("\n", "")
    rows = "\n".join(lines[start : start + 64] for start in range(0, len(lines), 64))
    return f"-----BEGIN CERTIFICATE-----\n{rows}\n-----END CERTIFICATE-----\n"


def named_identity(call: Call, trust_domain: str) -> SpiffeId:
    """The identity that the path names by `{kind}/{name}`, or a node by `{name}`. Raises
    `Fault(NOT_FOUND | MESSAGE_MALFORMED)`."""
    kind = call.parameters.get("kind", Kind.NODE.value)
    if kind not in _KINDS:
        raise Fault(Reason.NOT_FOUND, f"the kinds are {', '.join(_KINDS)}", field="kind")
    return SpiffeId(trust_domain, Kind(kind), check_name(call.parameters["name"]))


def body_identity(fields: Fields, trust_domain: str) -> SpiffeId:
    """The identity that a body names by `kind` (node, when missing) and `name`."""
    kind = Kind(fields.one_of("kind", _KINDS, Kind.NODE.value))
    return SpiffeId(trust_domain, kind, check_name(fields.text("name"), field=f"{fields.path}.name"))


def limit_of(call: Call) -> int:
    """The page's size that the query asks for. Raises `Fault(MESSAGE_MALFORMED)`."""
    return whole_number(call, "limit", DEFAULT_PAGE, least=1, most=MAX_PAGE)


def hex_after(call: Call) -> bytes:
    """The ID in hex behind which a page begins. Raises `Fault(MESSAGE_MALFORMED)`."""
    try:
        return bytes.fromhex(call.query.get("after", ""))
    except ValueError:
        raise Fault(Reason.MESSAGE_MALFORMED, "expected hex digits", field="query.after") from None


def whole_number(call: Call, name: str, default: int, *, least: int = 0, most: int = 2**63 - 1) -> int:
    """A whole number of the query. Raises `Fault(MESSAGE_MALFORMED)`."""
    text = call.query.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 20 and least <= int(text) <= most):
        raise Fault(Reason.MESSAGE_MALFORMED, f"expected a whole number from {least} to {most}", field=f"query.{name}")
    return int(text)


def filter_of(call: Call) -> Filter:
    """What an inventory listing is narrowed to. Raises `Fault(MESSAGE_MALFORMED)`."""
    query = Fields(dict(call.query), "query", Reason.MESSAGE_MALFORMED)
    return Filter(
        kind=Kind(query.one_of("kind", _KINDS)) if query.has("kind") else None,
        state=State(query.one_of("state", tuple(State))) if query.has("state") else None,
        tier=whole_number(call, "tier", 0, most=3) if query.has("tier") else None,
        region=query.text("region", ""),
        site=query.text("site", ""),
        segment=query.text("segment", ""),
    )


def description_of(fields: Fields) -> Description:
    """What an update changes: the fields that are there. Raises `Fault(MESSAGE_MALFORMED)`."""
    description = Description(
        roles=_roles(fields) if fields.has("roles") else None,
        tier=fields.integer("tier", most=3) if fields.has("tier") else None,
        region=_place(fields, "region"),
        site=_place(fields, "site"),
        segment=_place(fields, "segment"),
        labels=fields.mapping("labels", most=64) if fields.has("labels") else None,
    )
    fields.finish()
    return description


def why_of(fields: Fields) -> RevocationReason:
    """Why something is revoked. Raises `Fault(MESSAGE_MALFORMED)`."""
    return RevocationReason(fields.one_of("reason", tuple(RevocationReason), RevocationReason.UNSPECIFIED.value))


def _roles(fields: Fields) -> tuple[str, ...]:
    return tuple(check_name(role, field=f"{fields.path}.roles") for role in fields.texts("roles", most=32))


def _place(fields: Fields, name: str) -> str | None:
    """A name, an empty text to clear it, or None where the field is missing."""
    text = fields.text(name) if fields.has(name) else None
    return check_name(text, field=f"{fields.path}.{name}") if text else text
