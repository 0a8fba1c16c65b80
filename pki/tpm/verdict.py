"""How a TPM proves a node: the numbered steps, in their order. A step refuses with its own reason.

`identify` judges the first message of an enrolment: which TPM, which maker, which keys. `verify` judges the second:
these keys are in one TPM, and it booted that. Between the two stands the credential (`pki.tpm.credential`), which binds
AK to EK. `authenticate` and `verify_again` judge what the node of a certificate pushes while that lives. Everything
comes in as values, the time included; nothing is remembered.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from cryptography import x509

from foundation.faults import Fault
from foundation.identity import AttestationClass
from foundation.reasons import Reason
from foundation.wire.enrolment import Begin, Evidence, PcrSelection, qualifying_data
from foundation.wire.measurements import RUNTIME_PCR
from foundation.wire.reattestation import Push
from pki.tpm.algorithms import BANKS
from pki.tpm.attest import Attest, AttestType, Certified, Counters, Quoted
from pki.tpm.endorsement import check_profile, check_same_key, load_certificate
from pki.tpm.eventlog import FIRMWARE_PCRS, EventLog
from pki.tpm.ima import Aggregate, parse_measurements
from pki.tpm.keys import check_ak, check_signer, check_tls_key
from pki.tpm.public import Public
from pki.tpm.reference import ReferenceValues
from pki.tpm.request import check_request
from pki.tpm.signature import check_signature
from pki.tpm.templates import check_template
from pki.tpm.weak import NO_BLOCKLIST, Blocklist, check_key

# What an unorderly stop may take off the clock: TPM_PT_CLOCK_UPDATE is at most 2^22 milliseconds (Part 1 §36.3.2).
CLOCK_LOSS_MS = 1 << 22


class Makers(Protocol):
    """Whom we believe about TPMs: `pki.tpm.endorsement.MakerTrust`, or `pki.tpm.issuers.KnownIssuers` over it."""

    def classify(
        self, certificate: x509.Certificate, chain: tuple[x509.Certificate, ...], now: float, path: str
    ) -> AttestationClass: ...


@dataclass(frozen=True, slots=True)
class EnrolledKeys:
    """The keys that evidence is held against. `parse` checks them; on renewal the AK comes from the record."""

    ak: Public
    tls: Public

    @classmethod
    def parse(cls, ak_public: bytes, tls_public: bytes) -> EnrolledKeys:
        """From two TPMT_PUBLICs. Raises `Fault(TPM_* | AK_ATTRIBUTE | TLS_KEY_ATTRIBUTE | WEAK_KEY)`."""
        ak, tls = Public.parse(ak_public, "begin.ak_public"), Public.parse(tls_public, "begin.tls_public")
        check_key(ak.primitive, "begin.ak_public")
        check_key(tls.primitive, "begin.tls_public")
        check_ak(ak, "begin.ak_public")
        check_tls_key(tls, "begin.tls_public")
        return cls(ak, tls)

    @property
    def tls_spki(self) -> bytes:
        """The TLS key's DER SubjectPublicKeyInfo."""
        return self.tls.spki


@dataclass(frozen=True, slots=True)
class TpmIdentity:
    """Which TPM this is. `ek_sha256` is the SHA-256 of the EK's DER SubjectPublicKeyInfo in its common form
    (`rsaEncryption`, or `ecPublicKey` with a named curve), computed from the public area: the same for every
    certificate of the key. `maker`, `model` and `version` are the certificate's words."""

    ek_sha256: bytes
    ek: Public
    template: str
    attestation: AttestationClass
    maker: str
    model: str
    version: str
    keys: EnrolledKeys


@dataclass(frozen=True, slots=True)
class Expected:
    """What was asked. `first_message` is the raw BEGIN; `previous` are the counters of this node's last passed
    attestation, if there was one."""

    purpose: str
    session: bytes
    nonce: bytes
    first_message: bytes
    server_spki_sha256: bytes
    pcrs: PcrSelection
    previous: Counters | None = None

    def qualifying(self, kind: str) -> bytes:
        return qualifying_data(
            kind, self.purpose, self.session, self.nonce, self.first_message, self.server_spki_sha256
        )


@dataclass(frozen=True, slots=True)
class Attested:
    """What was proven. `counters` are to be kept as the next `Expected.previous`; `firmware_version` is the TPM's own,
    `pcr_values` the quoted ones by index, `explained` the PCRs whose values the event log replays to."""

    counters: Counters
    firmware_version: int
    pcr_values: Mapping[int, bytes]
    explained: frozenset[int]
    tls_spki: bytes


def identify(begin: Begin, trust: Makers, now: float, blocklist: Blocklist = NO_BLOCKLIST) -> TpmIdentity:
    """Judge the first message. `now` is in seconds since the Unix epoch. Raises `Fault` with the step's reason."""
    # 1. Strict parsing, no octets left over.
    if not begin.ek_certificate:
        raise Fault(Reason.EK_CERTIFICATE_MISSING, field="begin.ek_certificate")
    ek = Public.parse(begin.ek_public, "begin.ek_public")
    ak, tls = Public.parse(begin.ak_public, "begin.ak_public"), Public.parse(begin.tls_public, "begin.tls_public")
    certificate = load_certificate(begin.ek_certificate, "begin.ek_certificate")
    chain = tuple(load_certificate(raw, f"begin.ek_chain.{i}") for i, raw in enumerate(begin.ek_chain))
    # 2. The EK is its certificate's, made by an allowed template.
    check_same_key(certificate, ek, "begin.ek_public")
    template = check_template(ek, "begin.ek_public")
    # 3. The certificate follows the TCG profile.
    maker = check_profile(certificate, "begin.ek_certificate")
    # 4. It chains to a pinned root, now; the root gives the class.
    attestation = trust.classify(certificate, chain, now, "begin.ek_certificate")
    # 5. No key is known to be weak.
    for key, path in ((ek, "begin.ek_public"), (ak, "begin.ak_public"), (tls, "begin.tls_public")):
        check_key(key.primitive, path, blocklist)
    # 6. The AK is an attestation key.
    check_ak(ak, "begin.ak_public")
    # 7. The TLS key is a signing key fixed to this TPM.
    check_tls_key(tls, "begin.tls_public")
    digest = hashlib.sha256(ek.spki).digest()
    names = (maker.maker, maker.model, maker.version)
    return TpmIdentity(digest, ek, template.name, attestation, *names, EnrolledKeys(ak, tls))


def verify(
    keys: EnrolledKeys,
    evidence: Evidence,
    expected: Expected,
    reference: ReferenceValues | None,
    *,
    reference_required: bool,
) -> Attested:
    """Judge the evidence of the second message. Raises `Fault` with the step's reason."""
    # 1. to 4. Both structures are the AK's, of their types, made in its TPM, for this session.
    certify = _attested(keys.ak, evidence, AttestType.CERTIFY, expected)
    quote = _attested(keys.ak, evidence, AttestType.QUOTE, expected)
    # 5. The certified Name, its hash algorithm included, is that of the TLS key.
    _check_name(certify, keys.tls)
    # 6. The signer is the AK, in the endorsement hierarchy.
    check_signer(certify.signer, keys.ak, "evidence.certify")
    check_signer(quote.signer, keys.ak, "evidence.quote")
    # 7. The signed selection is the asked one.
    quoted = _check_selection(quote, expected.pcrs)
    # 8. The digest over the values is the signed one.
    values = _check_values(quoted, expected.pcrs, evidence.pcr_values, keys.ak)
    # 9. The TPM ran through between the two, and its counters never went back.
    counters = _check_counters(certify.counters, quote.counters, expected.previous)
    # 10. The event log replays to the values.
    logged = _replay(evidence.event_log, expected.pcrs.bank, values)
    # 11. The values are among the reference values.
    _check_reference(reference, reference_required, expected.pcrs.bank, values, logged)
    # 12. The request is for the certified key, and signed by it.
    check_request(evidence.csr, keys.tls_spki, "evidence.csr")
    return Attested(counters, quote.firmware_version, values, frozenset(logged), keys.tls_spki)


def _attested(ak: Public, evidence: Evidence, kind: AttestType, expected: Expected) -> Attest:
    name = kind.name.lower()
    signed, signature = (
        (evidence.certify_attest, evidence.certify_signature)
        if kind is AttestType.CERTIFY
        else (evidence.quote_attest, evidence.quote_signature)
    )
    # 1. The signature, by the AK's own scheme, over the octets that are parsed below.
    check_signature(ak, signed, signature, f"evidence.{name}.signature")
    # 2. and 3. Magic and type.
    attest = Attest.parse(signed, kind, f"evidence.{name}.attest")
    # 4. The qualifying data.
    if not hmac.compare_digest(attest.extra_data, expected.qualifying(name)):
        raise Fault(Reason.ATTEST_NONCE, field=f"evidence.{name}.attest")
    return attest


def _check_name(certify: Attest, tls: Public) -> None:
    info = certify.attested
    if not isinstance(info, Certified) or not hmac.compare_digest(info.name, tls.name):
        raise Fault(Reason.ATTEST_NAME, field="evidence.certify.attest")


def _check_selection(quote: Attest, asked: PcrSelection) -> Quoted:
    info = quote.attested
    signed = [(item.bank.name, item.indices) for item in info.selections] if isinstance(info, Quoted) else []
    if not isinstance(info, Quoted) or signed != [(asked.bank, asked.indices)]:
        raise Fault(Reason.QUOTE_SELECTION, field="evidence.quote.attest")
    return info


def _check_values(quoted: Quoted, asked: PcrSelection, values: tuple[bytes, ...], ak: Public) -> dict[int, bytes]:
    """The digest is by the hash of the AK's scheme, over the values in rising order (Part 3 §18.4)."""
    path = "evidence.pcr_values"
    if len(values) != len(asked.indices) or any(len(value) != BANKS[asked.bank].size for value in values):
        raise Fault(Reason.QUOTE_DIGEST, "not one value of the bank's size for each asked PCR", field=path)
    if ak.scheme is None:
        raise Fault(Reason.AK_ATTRIBUTE, "a restricted key has a scheme of its own", field=path)
    digest = hashlib.new(ak.scheme.hash.name, b"".join(values)).digest()
    if not hmac.compare_digest(digest, quoted.digest):
        raise Fault(Reason.QUOTE_DIGEST, field=path)
    return dict(zip(asked.indices, values, strict=True))


def _check_counters(certify: Counters, quote: Counters, previous: Counters | None) -> Counters:
    """resetCount rises at reset, restartCount at resume (back to zero at reset), clock always (Part 1 §36)."""
    if (certify.reset_count, certify.restart_count) != (quote.reset_count, quote.restart_count):
        raise Fault(Reason.QUOTE_COUNTERS, field="evidence.quote.attest")
    earlier, later = sorted((certify, quote), key=lambda item: item.clock)
    if previous is not None:
        _check_progress(earlier, previous)
    return later


def _check_progress(now: Counters, previous: Counters) -> None:
    """Never back, as one tuple. A reset of an orderly stop keeps the clock too, an unorderly one may take back what was
    not yet saved; `safe` tells which (Part 1 §36.3.2), and alone refuses nothing."""
    went_back = (now.reset_count, now.restart_count, now.clock) < (
        previous.reset_count,
        previous.restart_count,
        previous.clock,
    )
    lost = previous.clock - now.clock
    if went_back or lost > (0 if now.safe else CLOCK_LOSS_MS):
        raise Fault(Reason.CLOCK_REGRESSED, field="evidence.quote.attest")


def _replay(raw: bytes, bank: str, values: Mapping[int, bytes]) -> dict[int, tuple[bytes, ...]]:
    """What was extended into each quoted PCR whose value the log explains. PCRs 0 to 7 are the firmware's alone and
    must replay; to others the operating system adds what is in no firmware log."""
    if not raw:
        return {}
    log = EventLog.parse(raw, "evidence.event_log")
    if not log.has(bank):
        raise Fault(Reason.EVENT_LOG_MISMATCH, f"it has no digests of the bank {bank}", field="evidence.event_log")
    replayed, digests = log.replay(bank), log.digests(bank)
    wrong = sorted(pcr for pcr in values if pcr in FIRMWARE_PCRS and replayed[pcr] != values[pcr])
    if wrong:
        detail = f"PCR {', '.join(map(str, wrong))}"
        raise Fault(Reason.EVENT_LOG_MISMATCH, detail, field="evidence.event_log")
    return {pcr: digests.get(pcr, ()) for pcr in values if replayed[pcr] == values[pcr]}


def _check_reference(
    reference: ReferenceValues | None,
    required: bool,
    bank: str,
    values: Mapping[int, bytes],
    logged: Mapping[int, tuple[bytes, ...]],
) -> None:
    if reference is not None:
        reference.check(bank, values, logged)
    if required and (reference is None or not reference.pcrs):
        raise Fault(Reason.REFERENCE_MISSING)


@dataclass(frozen=True, slots=True)
class Accepted:
    """What is on record of the last passed attestation. `counters` may be older than the rest, from enrolment; `boot`
    tells the firmware's PCRs and by which reference values they were accepted, empty when they never were; `runtime`
    is how far the runtime log has been accepted by those."""

    counters: Counters | None
    boot: bytes = b""
    runtime: Aggregate | None = None


@dataclass(frozen=True, slots=True)
class Again:
    """What a pushed quote proved: `counters`, `boot` and `runtime` are the next `Accepted`."""

    counters: Counters
    boot: bytes
    runtime: Aggregate | None


def authenticate(ak: Public, push: Push, qualifying: tuple[bytes, ...]) -> tuple[Attest, int]:
    """The quote that the enrolled TPM made over one of `qualifying`, and over which of them. Whatever is refused here
    may be anybody's rubbish, and says nothing of the node. Raises `Fault` with the step's reason."""
    # 1. The signature, by the AK's own scheme, over the octets that are parsed below.
    check_signature(ak, push.quote_attest, push.quote_signature, "evidence.quote.signature")
    # 2. and 3. Magic and type.
    quote = Attest.parse(push.quote_attest, AttestType.QUOTE, "evidence.quote.attest")
    # 4. The qualifying data.
    matches = [index for index, data in enumerate(qualifying) if hmac.compare_digest(quote.extra_data, data)]
    if not matches:
        raise Fault(Reason.ATTEST_NONCE, field="evidence.quote.attest")
    return quote, matches[0]


def verify_again(
    ak: Public,
    quote: Attest,
    push: Push,
    pcrs: PcrSelection,
    accepted: Accepted,
    reference: ReferenceValues | None,
    *,
    reference_required: bool,
) -> Again:
    """Judge an authenticated quote: what the node booted and ran, by the same law as at enrolment. What was accepted
    before by these very reference values needs no log again. Raises `Fault` with the step's reason."""
    # 5. The signer is the AK, in the endorsement hierarchy.
    check_signer(quote.signer, ak, "evidence.quote")
    # 6. The signed selection is the asked one.
    quoted = _check_selection(quote, pcrs)
    # 7. The digest over the values is the signed one.
    values = _check_values(quoted, pcrs, push.pcr_values, ak)
    # 8. The TPM's counters never went back.
    if accepted.counters is not None:
        _check_progress(quote.counters, accepted.counters)
    # 9. The firmware's PCRs are as they were accepted, or what the log and the reference values allow.
    if reference_required and (reference is None or not reference.pcrs):
        raise Fault(Reason.REFERENCE_MISSING)
    boot = _boot(pcrs.bank, values, reference)
    if not hmac.compare_digest(boot, accepted.boot):
        _check_boot(push.event_log, pcrs.bank, values, reference)
    # 10. The runtime log replays to PCR 10, and everything in it is allowed.
    runtime = _check_runtime(push, pcrs.bank, values, reference, accepted, boot)
    return Again(quote.counters, boot, runtime)


def _boot(bank: str, values: Mapping[int, bytes], reference: ReferenceValues | None) -> bytes:
    """Tells PCRs and reference values; PCR 10 not where its log is judged, for it moves all the time."""
    moving = RUNTIME_PCR if reference and reference.runtime else -1
    digest = hashlib.sha256(reference.fingerprint if reference else b"no reference values")
    digest.update(bank.encode())
    for pcr, value in sorted(values.items()):
        if pcr != moving:
            digest.update(pcr.to_bytes(1, "big") + value)
    return digest.digest()


def _check_boot(event_log: bytes, bank: str, values: Mapping[int, bytes], reference: ReferenceValues | None) -> None:
    """As steps 10 and 11 of `verify`. What only a log could explain is not held against a node that sent none."""
    logged = _replay(event_log, bank, values)
    try:
        if reference is not None:
            reference.check(bank, values, logged)
    except Fault:
        if event_log:
            raise
        raise Fault(Reason.EVIDENCE_INCOMPLETE, "the event log is needed", field="evidence.event_log") from None


def _check_runtime(
    push: Push,
    bank: str,
    values: Mapping[int, bytes],
    reference: ReferenceValues | None,
    accepted: Accepted,
    boot: bytes,
) -> Aggregate | None:
    if reference is None or reference.runtime is None:
        return None
    before = Aggregate.at_reset(bank)
    if push.measured_from:
        known = accepted.runtime
        if known is None or known.count != push.measured_from or not hmac.compare_digest(boot, accepted.boot):
            raise Fault(Reason.EVIDENCE_INCOMPLETE, field="evidence.measured_from")
        before = known
    entries = parse_measurements(push.measurements, "evidence.measurements")
    after = before.extended(entries, bank)
    if not after.count or not hmac.compare_digest(after.value, values.get(RUNTIME_PCR, b"")):
        raise Fault(Reason.MEASUREMENTS_MISMATCH, field="evidence.measurements")
    reference.runtime.check(entries, before.count)
    return after
