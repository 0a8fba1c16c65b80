"""The JSON Schema (2020-12) of the messages of enrolment and re-attestation, from the same bounds that `enrolment` and
`reattestation` parse by.

It is published as docs/reference/enrolment.schema.json, for agents in other languages. What a schema cannot say (no key
twice, canonical base64, sizes in bytes) docs/protocol.md says.
"""

from __future__ import annotations

from typing import Any

from foundation.wire import enrolment as wire
from foundation.wire import reattestation
from foundation.wire.measurements import MAX_MEASUREMENTS_BYTES

ID = "urn:sallyport:schema:enrolment:v1"
_NAME = r"^(?!.*\.\.)[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$"
_TOKEN = r"^sp1_[A-Za-z0-9_-]+$"  # noqa: S105  # a format, not a secret
_BASE64 = r"^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"
_SECONDS = {"type": "integer", "minimum": 0}


def schema() -> dict[str, Any]:
    """The whole schema; each message is one of its definitions."""
    messages = {"begin": _begin(), "challenge": _challenge(), "complete": _complete(), "issued": _issued()}
    messages |= {"push": _push(), "next": _next()}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": ID,
        "title": "Sallyport enrolment and re-attestation protocols, version 1",
        "description": "BEGIN, CHALLENGE, COMPLETE with its evidence, ISSUED; PUSH, NEXT. See docs/protocol.md.",
        "oneOf": [{"$ref": f"#/$defs/{name}"} for name in messages],
        "$defs": {**messages, "evidence": _evidence(), "pcrs": _pcrs()},
    }


def _begin() -> dict[str, Any]:
    return _object(
        "The first message.",
        version={"const": wire.VERSION},
        purpose={"enum": list(wire.PURPOSES)},
        attestation={"enum": ["tpm", "none"]},
        node={"anyOf": [{"const": ""}, {"type": "string", "pattern": _NAME}]},
        token={"anyOf": [{"const": ""}, {"type": "string", "pattern": _TOKEN, "maxLength": 256}]},
        ek_certificate=_bytes(wire.MAX_CERTIFICATE_BYTES),
        ek_chain=_list(wire.MAX_CHAIN_CERTIFICATES, wire.MAX_CERTIFICATE_BYTES),
        ek_public=_bytes(wire.MAX_STRUCTURE_BYTES),
        ak_public=_bytes(wire.MAX_STRUCTURE_BYTES),
        tls_public=_bytes(wire.MAX_STRUCTURE_BYTES),
    )


def _challenge() -> dict[str, Any]:
    return _object(
        "The answer to BEGIN.",
        session=_bytes(wire.SESSION_BYTES),
        nonce=_bytes(wire.NONCE_BYTES),
        expires_in={"type": "integer", "minimum": 1, "maximum": 3600},
        credential_blob=_bytes(wire.MAX_STRUCTURE_BYTES),
        encrypted_secret=_bytes(wire.MAX_STRUCTURE_BYTES),
        pcrs={"$ref": "#/$defs/pcrs"},
        server_spki_sha256=_bytes(32),
    )


def _complete() -> dict[str, Any]:
    evidence = _bytes(wire.MAX_COMPLETE_BYTES) | {"description": "The bytes of an object as `evidence` defines it."}
    return _object("The second message.", session=_bytes(wire.SESSION_BYTES), evidence=evidence, proof=_bytes(32))


def _evidence() -> dict[str, Any]:
    signed = _object(
        "TPMS_ATTEST and TPMT_SIGNATURE.",
        attest=_bytes(wire.MAX_STRUCTURE_BYTES),
        signature=_bytes(wire.MAX_STRUCTURE_BYTES),
    )
    return _object(
        "What COMPLETE proves.",
        certify=signed,
        quote=signed,
        pcr_values=_list(24, 64),
        event_log=_bytes(wire.MAX_EVENT_LOG_BYTES),
        csr=_bytes(wire.MAX_CERTIFICATE_BYTES),
        possession=_bytes(1024),
    )


def _issued() -> dict[str, Any]:
    return _object(
        "The answer to COMPLETE.",
        spiffe_id={"type": "string", "pattern": "^spiffe://"},
        chain=_list(wire.MAX_CHAIN_CERTIFICATES, wire.MAX_CERTIFICATE_BYTES),
        not_after=_SECONDS,
        renew_after=_SECONDS,
        attestation={"enum": ["hardware", "virtual", "none"]},
        attested_until=_SECONDS,
    )


def _push() -> dict[str, Any]:
    version, empty = {"const": reattestation.VERSION}, {"const": ""}
    evidence = _object(
        "Evidence.",
        version=version,
        quote=_object(
            "TPMS_ATTEST and TPMT_SIGNATURE.",
            attest=_bytes(wire.MAX_STRUCTURE_BYTES) | {"minLength": 4},
            signature=_bytes(wire.MAX_STRUCTURE_BYTES),
        ),
        pcr_values=_list(24, 64),
        event_log=_bytes(wire.MAX_EVENT_LOG_BYTES),
        measured_from={"type": "integer", "minimum": 0, "maximum": 2**31},
        measurements=_bytes(MAX_MEASUREMENTS_BYTES),
    )
    question = _object(
        "A question for a nonce.",
        version=version,
        quote=_object("None.", attest=empty, signature=empty),
        pcr_values={"type": "array", "maxItems": 0},
        event_log=empty,
        measured_from={"type": "integer", "const": 0},
        measurements=empty,
    )
    return {"description": "One round of a node that re-attests.", "oneOf": [evidence, question]}


def _next() -> dict[str, Any]:
    return _object(
        "The answer to PUSH.",
        nonce=_bytes(wire.NONCE_BYTES) | {"minLength": (wire.NONCE_BYTES + 2) // 3 * 4},
        pcrs={"$ref": "#/$defs/pcrs"},
        interval={"type": "integer", "minimum": 1, "maximum": reattestation.MAX_INTERVAL_SECONDS},
        attested_until=_SECONDS,
        measured={"type": "boolean"},
    )


def _pcrs() -> dict[str, Any]:
    index = {"type": "integer", "minimum": 0, "maximum": 23}
    indices = {"type": "array", "items": index, "minItems": 1, "maxItems": 24, "uniqueItems": True}
    return _object("Which PCRs of which bank, rising.", bank={"enum": list(wire.PCR_BANKS)}, indices=indices)


def _object(description: str, **properties: Any) -> dict[str, Any]:
    """Every field is required and no other is allowed."""
    return {
        "type": "object",
        "description": description,
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _bytes(most: int) -> dict[str, Any]:
    return {"type": "string", "contentEncoding": "base64", "pattern": _BASE64, "maxLength": (most + 2) // 3 * 4}


def _list(most: int, each: int) -> dict[str, Any]:
    return {"type": "array", "items": _bytes(each), "maxItems": most}
