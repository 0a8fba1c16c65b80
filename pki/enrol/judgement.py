"""What the evidence of a second message proves, by the TPM's verdict or, where settings allow it, by a software key.

Pure but for `load_trust`, which reads the pinned roots and reference values once, at the start.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from foundation.faults import Fault
from foundation.fields import Fields
from foundation.identity import AttestationClass
from foundation.reasons import Reason
from foundation.wire.enrolment import Begin, Evidence, qualifying_data
from pki.enrol.sessions import Session
from pki.enrol.settings import EnrolmentSettings
from pki.entries import Attested, Counters, Entry
from pki.profile import check_key
from pki.tpm import verdict
from pki.tpm.attest import Counters as TpmCounters
from pki.tpm.endorsement import MakerTrust
from pki.tpm.reference import ReferenceValues
from pki.tpm.request import check_request

MAX_REFERENCE_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Trust:
    """Whom we believe about TPMs: the makers' roots, and what nodes of a class may have measured."""

    makers: MakerTrust = field(default_factory=MakerTrust)
    references: Mapping[str, ReferenceValues] = field(default_factory=dict)

    def reference_for(self, entry: Entry) -> ReferenceValues | None:
        """The reference values of the node's class: its label `class`, or else `tier-<n>`, or else `default`."""
        named = entry.record.labels.get("class", f"tier-{entry.record.tier}")
        return self.references.get(named) or self.references.get("default")


@dataclass(frozen=True, slots=True)
class Proven:
    """What the evidence proved: the key to certify (DER SubjectPublicKeyInfo), and what was attested."""

    spki: bytes
    attested: Attested


def judge_tpm(
    keys: verdict.EnrolledKeys,
    asked: verdict.Expected,
    evidence: Evidence,
    reference: ReferenceValues | None,
    settings: EnrolmentSettings,
) -> verdict.Attested:
    """The TPM's verdict by these settings. Raises `Fault` with the step's reason."""
    return verdict.verify(keys, evidence, asked, reference, reference_required=settings.production)


def asked_of(session_id: bytes, session: Session, settings: EnrolmentSettings) -> verdict.Expected:
    """What the session's challenge asked of the TPM."""
    return verdict.Expected(
        purpose=session.purpose,
        session=session_id,
        nonce=session.nonce,
        first_message=session.first_message,
        server_spki_sha256=session.server_spki_sha256,
        pcrs=settings.pcrs,
        previous=tpm_counters(session.counters),
    )


def attested_by(
    found: verdict.Attested, attestation: AttestationClass, until: float, ek_sha256: bytes, keys: verdict.EnrolledKeys
) -> Proven:
    """What is to be recorded and certified after a passed verdict."""
    counters = Counters(found.counters.reset_count, found.counters.restart_count, found.counters.clock)
    attested = Attested(attestation, until, ek_sha256, keys.ak.raw, keys.ak.name, counters)
    return Proven(found.tls_spki, attested)


def keys_on_record(entry: Entry, message: Begin) -> verdict.EnrolledKeys:
    """The AK that enrolment bound to this identity, with the TLS key that a renewal brings. Raises `Fault(EK_CHANGED)`
    when the renewal names another AK, and what the TLS key's public area calls for."""
    if not entry.ak_public:
        raise Fault(Reason.ATTESTATION_REQUIRED, "no TPM is on record for this identity", field="begin.attestation")
    if message.ak_public not in (b"", entry.ak_public):
        raise Fault(Reason.EK_CHANGED, "another AK than the one on record: enrol anew", field="begin.ak_public")
    return verdict.EnrolledKeys.parse(entry.ak_public, message.tls_public)


def tpm_counters(counters: Counters | None) -> TpmCounters | None:
    """Those on record, as the verdict compares them; None where nothing was attested since an operator cleared a
    failure."""
    if counters is None:
        return None
    reset, restart, clock = counters
    return TpmCounters(clock=clock, reset_count=reset, restart_count=restart, safe=True)


def check_class(attestation: AttestationClass, settings: EnrolmentSettings) -> None:
    """Raises `Fault(TPM_CLASS_REFUSED)` for a class of TPM that the settings do not let in; production lets in hardware
    alone, whatever they say."""
    hardware = attestation is AttestationClass.HARDWARE
    if attestation.value not in settings.classes or (settings.production and not hardware):
        raise Fault(Reason.TPM_CLASS_REFUSED, f"it is {attestation.value}", field="begin.ek_certificate")


def check_software(message: Begin) -> None:
    """Raises `Fault(MESSAGE_MALFORMED | WEAK_KEY)` unless `message` brings a software key and no TPM's."""
    if message.ek_certificate or message.ek_chain or message.ek_public or message.ak_public:
        raise Fault(Reason.MESSAGE_MALFORMED, "attestation `none` names no TPM", field="begin.attestation")
    if not isinstance(check_key(message.tls_public), ec.EllipticCurvePublicKey):
        raise Fault(Reason.WEAK_KEY, "a software key is ECDSA on P-256 or P-384", field="begin.tls_public")


def judge_software(message: Begin, session_id: bytes, session: Session, evidence: Evidence) -> Proven:
    """Possession of the software key, bound to this exchange, and nothing about the machine. Raises
    `Fault(PROOF_WRONG | CSR_*)`."""
    key = check_key(message.tls_public)
    signed = qualifying_data(
        "possession",
        session.purpose,
        session_id,
        session.nonce,
        session.first_message,
        session.server_spki_sha256,
    )
    try:
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise InvalidSignature
        key.verify(evidence.possession, signed, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise Fault(Reason.PROOF_WRONG, field="evidence.possession") from None
    check_request(evidence.csr, message.tls_public, "evidence.csr")
    return Proven(message.tls_public, Attested(AttestationClass.NONE, 0.0))


def load_trust(settings: EnrolmentSettings) -> Trust:
    """Roots and reference values from the folders that the settings name: `*.pem` files, and one `<class>.json` a
    class. Raises `Fault(FILE_UNREADABLE | SETTING_INVALID)`."""
    makers = MakerTrust(_roots(settings.roots), _roots(settings.virtual_roots))
    folder = settings.reference_values
    files = [] if folder is None else _files(folder, "*.json")
    return Trust(makers, {path.stem: _reference(path) for path in files})


def _roots(folder: Path | None) -> tuple[x509.Certificate, ...]:
    files = [] if folder is None else _files(folder, "*.pem")
    return tuple(root for path in files for root in _certificates(path))


def _certificates(path: Path) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(_read(path))
    except ValueError:
        raise Fault(Reason.FILE_UNREADABLE, "not certificates in PEM", field=str(path)) from None


def _reference(path: Path) -> ReferenceValues:
    raw = _read(path)
    return ReferenceValues.parse(
        Fields.from_json(raw, str(path), Reason.SETTING_INVALID, max_bytes=MAX_REFERENCE_BYTES)
    )


def _files(folder: Path, pattern: str) -> list[Path]:
    if not folder.is_dir():
        raise Fault(Reason.FILE_UNREADABLE, "no such folder", field=str(folder))
    return sorted(folder.glob(pattern))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Fault(Reason.FILE_UNREADABLE, error.strerror or "unreadable", field=str(path)) from error
