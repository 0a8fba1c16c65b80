"""Fuzz targets of pki/tpm: every parser of TPM evidence. What is accepted must marshal to the same octets again."""

from __future__ import annotations

import contextlib

from cryptography.hazmat.primitives.asymmetric import ec, rsa

from deploy.demo.measured_boot import event_log, healthy_boot
from deploy.demo.tpm_maker import TpmMaker
from foundation.faults import Fault
from foundation.fields import Fields
from foundation.reasons import Reason
from foundation.wire.reattestation import Push
from pki.tpm.attest import Attest, AttestType
from pki.tpm.credential import ENTROPY_BYTES, make_credential
from pki.tpm.der import check_der
from pki.tpm.endorsement import MakerTrust, check_profile, check_same_key, classify, load_certificate
from pki.tpm.eventlog import EventLog
from pki.tpm.ima import Aggregate, RuntimeReference, parse_measurements
from pki.tpm.public import Public
from pki.tpm.reference import ReferenceValues
from pki.tpm.request import check_request
from pki.tpm.signature import Signature, check_signature
from pki.tpm.templates import check_template
from pki.tpm.verdict import EnrolledKeys, authenticate
from pki.tpm.weak import Blocklist, check_key
from tests.support.attesting import ima_entry
from tests.support.soft_tpm import NOW, NULL, POLICY_A, RSASSA, TLS, SoftTpm, asked, public_area, request, signature

_MAKER = TpmMaker.create()
_TPM = SoftTpm(_MAKER)
_RSA = rsa.generate_private_key(65537, 2048)
_AK = Public.parse(_TPM.ak_area, "ak")
_RSA_AK = Public.parse(public_area(_RSA.public_key(), _TPM.ak_attributes, scheme=RSASSA), "ak")
_EK = Public.parse(_TPM.ek_area, "ek")
_CERTIFY = _TPM.certify(asked().qualifying("certify"))
_QUOTE = _TPM.quote(asked().qualifying("quote"))
_P384 = ec.generate_private_key(ec.SECP384R1())


def _public(raw: bytes) -> None:
    public = Public.parse(raw, "public")
    assert public.marshal() == raw
    check_key(public.primitive, "public")
    check_template(public, "public")
    make_credential(public, b"name", b"secret", bytes(ENTROPY_BYTES))


def _keys(raw: bytes) -> None:
    assert EnrolledKeys.parse(_TPM.ak_area, raw).tls.raw == raw


def _certify(raw: bytes) -> None:
    assert Attest.parse(raw, AttestType.CERTIFY, "attest").marshal() == raw


def _quote(raw: bytes) -> None:
    assert Attest.parse(raw, AttestType.QUOTE, "attest").marshal() == raw


def _signature(raw: bytes) -> None:
    parsed = Signature.parse(raw, "signature")
    assert parsed.marshal() == raw
    check_signature(_RSA_AK if len(parsed.parts) == 1 else _AK, _CERTIFY, raw, "signature")


def _event_log(raw: bytes) -> None:
    log = EventLog.parse(raw, "log")
    for bank in ("sha256", "sha384"):
        if log.has(bank):
            log.replay(bank)
            log.digests(bank)


def _measurements(raw: bytes) -> None:
    found = parse_measurements(raw, "log")
    assert Aggregate.at_reset("sha256").extended(found, "sha256").count == len(found)
    with contextlib.suppress(Fault):
        RuntimeReference(frozenset()).check(found, 0)


def _push(raw: bytes) -> None:
    message = Push.parse(raw)
    assert Push.parse(message.encode()) == message
    with contextlib.suppress(Fault):
        authenticate(_AK, message, (b"q" * 32,))


def _certificate(raw: bytes) -> None:
    certificate = load_certificate(raw, "certificate")
    check_profile(certificate, "certificate")
    check_same_key(certificate, _EK, "certificate")
    classify(certificate, (_MAKER.intermediate, certificate), MakerTrust((_MAKER.root,)), NOW, "certificate")


def _der(raw: bytes) -> None:
    check_der(raw, Reason.CSR_MALFORMED, "der")


def _request(raw: bytes) -> None:
    check_request(raw, _EK.spki, "csr")


def _reference(raw: bytes) -> None:
    fields = Fields.from_json(raw, "reference", Reason.SETTING_INVALID, max_bytes=1 << 20)
    ReferenceValues.parse(fields)


def _blocklist(raw: bytes) -> None:
    Blocklist.parse(raw.decode("utf-8", "replace"))


TARGETS = {
    "public": _public,
    "keys": _keys,
    "certify": _certify,
    "quote": _quote,
    "signature": _signature,
    "event_log": _event_log,
    "measurements": _measurements,
    "push": _push,
    "certificate": _certificate,
    "der": _der,
    "request": _request,
    "reference": _reference,
    "blocklist": _blocklist,
}
_REQUEST = request(_TPM.ek)
SEEDS = {
    "public": [_TPM.ek_area, public_area(_RSA.public_key(), 0x300B2, policy=POLICY_A, aes=128, scheme=NULL)],
    "keys": [_TPM.tls_area, public_area(_P384.public_key(), TLS, scheme=NULL)],
    "certify": [_CERTIFY],
    "quote": [_QUOTE],
    "signature": [signature(_TPM.ak, _CERTIFY), signature(_RSA, _CERTIFY)],
    "event_log": [event_log(healthy_boot(), ("sha1", "sha256")), event_log((), ("sha256", "sha384"))],
    "measurements": [
        ima_entry(b"boot_aggregate", bytes(32)) + ima_entry(b"/a", b"d" * 32, sig=b"s"),
        ima_entry(b"/b", b"d" * 32, violation=True),
    ],
    "push": [Push(_QUOTE, signature(_TPM.ak, _QUOTE), (b"v" * 32,)).encode(), Push().encode()],
    "certificate": [_TPM.certificate],
    "der": [_TPM.certificate, _REQUEST],
    "request": [_REQUEST],
    "reference": [b'{"bank":"sha256","pcrs":{"0":{"values":["' + b"ab" * 32 + b'"]}}}'],
    "blocklist": [b"# list\n0123456789abcdef0123\n"],
}
