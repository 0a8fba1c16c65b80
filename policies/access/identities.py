"""Identities from a file: what `sallyport inventory list --json` prints, or as much of that as is known."""

from __future__ import annotations

from foundation.faults import Fault
from foundation.fields import Fields, strict_json
from foundation.identifiers import Kind, SpiffeId
from foundation.identity import AttestationClass, IdentityRecord, Posture, State, Verdict
from foundation.reasons import Reason
from policies.access.asking import Subject

MAX_BYTES = 64 << 20
MAX_IDENTITIES = 100_000
DOMAIN = "draft.example"
"""The trust domain of identities that are given by name alone."""

# As `gateway.standing` refuses them, whatever policy says.
REFUSALS = {
    State.EXPECTED: Reason.IDENTITY_UNKNOWN,
    State.QUARANTINED: Reason.IDENTITY_QUARANTINED,
    State.REVOKED: Reason.IDENTITY_REVOKED,
}


def read_identities(raw: bytes) -> tuple[Subject, ...]:
    """The identities in a JSON list, each with `id` (a SPIFFE ID) or `name` and `kind`. What is left out is as of a
    node in good standing: active, its attestation passed with a hardware TPM. Raises `Fault(MESSAGE_MALFORMED)`."""
    document = strict_json(raw, "identities", Reason.MESSAGE_MALFORMED)
    whole = document if isinstance(document, dict) else {"items": document}
    found = Fields(whole, "identities", Reason.MESSAGE_MALFORMED).each("items", _subject, most=MAX_IDENTITIES)
    if len({each.record.id for each in found}) != len(found):
        raise Fault(Reason.MESSAGE_MALFORMED, "an identity stands there twice", field="identities")
    return found


def found_among(subjects: tuple[Subject, ...], kind: Kind, name: str) -> Subject:
    """The one with that name, or with that SPIFFE ID. Raises `Fault(NOT_FOUND)`."""
    for each in subjects:
        if str(each.record.id) == name or (each.record.id.name == name and each.record.id.kind is kind):
            return each
    raise Fault(Reason.NOT_FOUND, f"no {kind.value} {name[:64]!r} among the identities", field="identity")


def default_attestation(kind: Kind) -> AttestationClass:
    return AttestationClass.HARDWARE if kind is Kind.NODE else AttestationClass.NONE


def _subject(fields: Fields) -> Subject:
    identity = _id(fields)
    state = State(fields.one_of("state", tuple(State), State.ACTIVE))
    record = IdentityRecord(
        id=identity,
        state=state,
        epoch=0,
        roles=fields.texts("roles", ()),
        tier=fields.integer("tier", 1 if identity.kind is Kind.NODE else 0, most=3),
        region=fields.text("region", ""),
        site=fields.text("site", ""),
        segment=fields.text("segment", ""),
        labels=fields.mapping("labels", {}),
        versions=fields.mapping("versions", {}),
    )
    attestation = fields.one_of("attestation", tuple(AttestationClass), default_attestation(identity.kind))
    verdict = fields.one_of("verdict", tuple(Verdict), Verdict.PASSED)
    return Subject(record, Posture(AttestationClass(attestation), Verdict(verdict)), REFUSALS.get(state))


def _id(fields: Fields) -> SpiffeId:
    if fields.has("id"):
        return SpiffeId.parse(fields.text("id"))
    return SpiffeId(DOMAIN, Kind(fields.one_of("kind", tuple(Kind), Kind.NODE)), fields.text("name"))
