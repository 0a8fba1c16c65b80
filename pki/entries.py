"""An inventory entry, and the judgements over it: what an attestation, a TPM or an operator's act makes of it.

Everything here is values in, values out; `pki.inventory` reads and writes the rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from foundation.faults import Fault
from foundation.fields import Fields
from foundation.identifiers import Kind, SpiffeId, check_name
from foundation.identity import AttestationClass, IdentityRecord, Posture, State, Verdict
from foundation.reasons import Reason

SHA256_BYTES = 32
MAX_TEXT = 256
MAX_ROLES = 32
NAMES_LABEL = "names"
"""Of a gateway: the DNS names and IP addresses, separated by commas, that its certificate vouches for. Whoever sets it
says for which names nodes believe this gateway, which is more than adding an entry: only an update may."""
_MOST_COUNTED = 2**63 - 1  # milliseconds: 292 million years


class Counters(NamedTuple):
    """TPMS_CLOCK_INFO's counters (TPM 2.0 Part 2 §10.11.1). They compare as one tuple, in this order: a reset makes
    everything behind it start anew, so one of them alone says nothing."""

    reset: int
    restart: int
    clock: int


@dataclass(frozen=True, slots=True)
class Attested:
    """What a passed attestation proved. `until` is in seconds since the Unix epoch. `ek_sha256` is the SHA-256 of the
    EK's TPMT_PUBLIC; empty, as are AK and counters, with class `none`."""

    attestation: AttestationClass
    until: float
    ek_sha256: bytes = b""
    ak_public: bytes = b""
    ak_name: bytes = b""
    counters: Counters | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One identity as the authority knows it. `latched` is the code of a failure that an operator has to clear, or
    empty; `ek_sha256` is empty until a TPM is bound; `current_serial` (hex) is that of the newest certificate."""

    record: IdentityRecord
    posture: Posture
    attested_until: float
    latched: str
    ek_sha256: bytes
    ak_public: bytes
    ak_name: bytes
    counters: Counters | None
    current_serial: str
    inventory_number: int
    posture_number: int
    created_at: float
    updated_at: float

    @property
    def id(self) -> SpiffeId:
        return self.record.id

    @classmethod
    def of(cls, row: Any) -> Entry:
        """The entry in a row of `identities`."""
        counters = None if row.tpm_reset is None else Counters(row.tpm_reset, row.tpm_restart, row.tpm_clock)
        return cls(
            record=record_of(row),
            posture=posture_of(row),
            attested_until=row.attested_until,
            latched=row.latched,
            ek_sha256=row.ek_sha256 or b"",
            ak_public=row.ak_public,
            ak_name=row.ak_name,
            counters=counters,
            current_serial=row.current_serial,
            inventory_number=row.inventory_number,
            posture_number=row.posture_number,
            created_at=row.created_at,
            updated_at=row.updated_at,
        )


@dataclass(frozen=True, slots=True)
class Expected:
    """What an operator says of an identity before it first enrols."""

    id: SpiffeId
    roles: tuple[str, ...] = ()
    tier: int = 0
    region: str = ""
    site: str = ""
    segment: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    ek_sha256: bytes = b""

    @classmethod
    def parse(cls, fields: Fields, trust_domain: str) -> Expected:
        """One object of an import: `name`, and optionally `kind`, `roles`, `tier`, `region`, `site`, `segment`,
        `labels`, `ek_sha256` (hex). Raises a `Fault` that names the field."""
        kind = Kind(fields.one_of("kind", tuple(Kind), Kind.NODE.value))
        expected = cls(
            id=SpiffeId(trust_domain, kind, check_name(fields.text("name"), field=f"{fields.path}.name")),
            roles=_names(fields, "roles"),
            tier=fields.integer("tier", 0, most=3),
            region=_name(fields, "region"),
            site=_name(fields, "site"),
            segment=_name(fields, "segment"),
            labels=_labels(fields),
            ek_sha256=_digest(fields),
        )
        fields.finish()
        return expected


def record_of(row: Any) -> IdentityRecord:
    """The public record in a row of `identities`."""
    return IdentityRecord(
        id=SpiffeId.parse(row.id),
        state=State(row.state),
        epoch=row.epoch,
        roles=tuple(row.roles),
        tier=row.tier,
        region=row.region,
        site=row.site,
        segment=row.segment,
        labels=row.labels,
        versions=row.versions,
    )


def posture_of(row: Any) -> Posture:
    """The posture in a row of `identities`. A latched failure is a failure, whatever was attested since."""
    verdict = Verdict.FAILED if row.latched else Verdict(row.verdict)
    return Posture(AttestationClass(row.attestation), verdict)


def check_enrollable(entry: Entry) -> None:
    """Raises `Fault(INVENTORY_STATE | ATTESTATION_LATCHED)` when `entry` may have no certificate now."""
    if entry.record.state not in (State.EXPECTED, State.ACTIVE):
        raise Fault(Reason.INVENTORY_STATE, f"the identity is {entry.record.state}", field="identity")
    if entry.latched:
        raise Fault(Reason.ATTESTATION_LATCHED, internal=entry.latched, field="identity")


def check_ek(entry: Entry, ek_sha256: bytes, holder: SpiffeId | None) -> None:
    """Whether the TPM of `ek_sha256`, bound to `holder` so far, may speak for `entry`. An entry that a TPM is bound to
    cannot come back without one. Raises `Fault(EK_CHANGED | EK_TAKEN)`."""
    if entry.ek_sha256 and entry.ek_sha256 != ek_sha256:
        raise Fault(Reason.EK_CHANGED, field="ek")
    if holder is not None and holder != entry.id:
        raise Fault(Reason.EK_TAKEN, field="ek", internal=f"bound to {holder}")


def check_counters(known: Counters | None, shown: Counters | None) -> None:
    """Raises `Fault(CLOCK_REGRESSED)` when the TPM's counters went back: a restored snapshot of a virtual TPM, or a
    cleared one."""
    if shown is not None and max(shown) > _MOST_COUNTED:
        raise Fault(Reason.CLOCK_REGRESSED, "a counter is beyond belief", field="counters")
    if known is not None and (shown is None or shown < known):
        raise Fault(Reason.CLOCK_REGRESSED, field="counters", internal=f"known {known}, shown {shown}")


def check_attested(entry: Entry, holder: SpiffeId | None, attested: Attested) -> None:
    """Whether a passed attestation may be recorded for `entry`; `holder` is whom its TPM was bound to so far. Raises
    `Fault(INVENTORY_STATE | ATTESTATION_LATCHED | EK_CHANGED | EK_TAKEN | CLOCK_REGRESSED)`."""
    check_enrollable(entry)
    check_ek(entry, attested.ek_sha256, holder)
    check_counters(entry.counters, attested.counters)


def gateway_names(entry: Entry) -> tuple[str, ...]:
    """The names that the certificate of `entry`, a gateway, vouches for. Raises `Fault(PROFILE_REFUSED)` when nobody
    has given it any: an entry and a token alone make no gateway."""
    names = tuple(name.strip() for name in entry.record.labels.get(NAMES_LABEL, "").split(",") if name.strip())
    if not names:
        detail = f"the gateway has no label `{NAMES_LABEL}`, which an operator of the role security gives it"
        raise Fault(Reason.PROFILE_REFUSED, detail, field="labels")
    return names


def posture_changes(entry: Entry, attested: Attested) -> bool:
    """Whether a passed attestation changes facts, or moves a deadline alone. The first one always is a fact."""
    return entry.posture_number == 0 or entry.posture != Posture(attested.attestation, Verdict.PASSED)


def _names(fields: Fields, name: str) -> tuple[str, ...]:
    texts = fields.texts(name, (), most=MAX_ROLES)
    return tuple(sorted({check_name(text, field=f"{fields.path}.{name}") for text in texts}))


def _name(fields: Fields, name: str) -> str:
    text = fields.text(name, "")
    return check_name(text, field=f"{fields.path}.{name}") if text else ""


def _labels(fields: Fields) -> dict[str, str]:
    labels = fields.mapping("labels", {}, most=64)
    if any(len(text) > MAX_TEXT for pair in labels.items() for text in pair):
        raise fields.fault("labels", f"expected keys and values of at most {MAX_TEXT} characters")
    if NAMES_LABEL in labels:
        raise fields.fault("labels", f"the label `{NAMES_LABEL}` is given by an update of the entry, not with it")
    return labels


def _digest(fields: Fields) -> bytes:
    text = fields.text("ek_sha256", "")
    try:
        digest = bytes.fromhex(text)
    except ValueError:
        raise fields.fault("ek_sha256", "expected hex digits") from None
    if text and (len(digest) != SHA256_BYTES or digest.hex() != text):
        raise fields.fault("ek_sha256", "expected 64 lower-case hex digits")
    return digest
