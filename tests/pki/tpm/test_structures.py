"""Parsers of TPM structures: what a TPM makes goes in and comes out again; whatever else there is, is a fault.

Second opinions: tpm2-tools (`tpm2_print`, `tpm2_checkquote`) and tpm2-pytss.
"""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key
from hypothesis import given, settings
from hypothesis import strategies as st
from tpm2_pytss.types import TPM2B_PUBLIC, TPMT_PUBLIC

from foundation.faults import Fault
from foundation.reasons import Reason
from pki.tpm.attest import Attest, AttestType, Certified, Quoted
from pki.tpm.public import Public
from pki.tpm.signature import Signature
from tests.support import soft_tpm
from tests.support.recorded import Recording, recording, recordings  # noqa: F401  # fixtures
from tests.support.swtpm import maker  # noqa: F401  # fixture

FEW = settings(max_examples=60, deadline=None)
ECC_KEY = ec.generate_private_key(ec.SECP256R1()).public_key()
RSA_KEY = rsa.generate_private_key(65537, 2048).public_key()
_STRUCTURE_FAULTS = {
    Reason.TPM_STRUCTURE_MALFORMED,
    Reason.TPM_TRAILING_BYTES,
    Reason.TPM_ALGORITHM_REFUSED,
    Reason.WEAK_KEY,
    Reason.ATTEST_MAGIC,
    Reason.ATTEST_TYPE,
}
PUBLICS = (
    soft_tpm.public_area(ECC_KEY, soft_tpm.AK),
    soft_tpm.public_area(ECC_KEY, soft_tpm.TLS, scheme=soft_tpm.NULL, name_hash=soft_tpm.SHA384),
    soft_tpm.public_area(RSA_KEY, soft_tpm.EK_LOW, policy=soft_tpm.POLICY_A, aes=128, scheme=soft_tpm.NULL),
    soft_tpm.public_area(RSA_KEY, soft_tpm.AK, scheme=soft_tpm.RSAPSS),
)
_TAIL = bytes(17 + 8)
_HEAD = struct.pack(">I", soft_tpm.MAGIC)
CERTIFY = _HEAD + b"\x80\x17" + soft_tpm.sized(b"q" * 34) + soft_tpm.sized(b"x" * 32) + _TAIL
CERTIFY += soft_tpm.sized(b"n" * 34) + soft_tpm.sized(b"m" * 34)
QUOTE = _HEAD + b"\x80\x18" + soft_tpm.sized(b"q" * 34) + soft_tpm.sized(b"x" * 32) + _TAIL
QUOTE += soft_tpm.selection((soft_tpm.SHA256, (0, 7, 23))) + soft_tpm.sized(b"d" * 32)
SIGNATURES = (
    b"\x00\x18\x00\x0b" + soft_tpm.sized(b"r" * 32) + soft_tpm.sized(b"s" * 31),
    b"\x00\x14\x00\x0c" + soft_tpm.sized(b"s" * 256),
)


def parse_public(raw: bytes) -> bytes:
    return Public.parse(raw, "p").marshal()


def parse_certify(raw: bytes) -> bytes:
    return Attest.parse(raw, AttestType.CERTIFY, "a").marshal()


def parse_quote(raw: bytes) -> bytes:
    return Attest.parse(raw, AttestType.QUOTE, "a").marshal()


def parse_signature(raw: bytes) -> bytes:
    return Signature.parse(raw, "s").marshal()


SAMPLES: list[tuple[Callable[[bytes], bytes], bytes]] = [
    *((parse_public, raw) for raw in PUBLICS),
    (parse_certify, CERTIFY),
    (parse_quote, QUOTE),
    *((parse_signature, raw) for raw in SIGNATURES),
]


@pytest.mark.parametrize(("parse", "raw"), SAMPLES)
class TestEveryParser:
    def test_marshals_what_it_parsed(self, parse: Callable[[bytes], bytes], raw: bytes) -> None:
        assert parse(raw) == raw

    def test_refuses_what_is_left_over(self, parse: Callable[[bytes], bytes], raw: bytes) -> None:
        for tail in (b"\x00", b"\xff" * 7, raw):
            with pytest.raises(Fault) as caught:
                parse(raw + tail)
            assert caught.value.reason is Reason.TPM_TRAILING_BYTES

    def test_refuses_every_prefix(self, parse: Callable[[bytes], bytes], raw: bytes) -> None:
        for size in range(len(raw)):
            with pytest.raises(Fault) as caught:
                parse(raw[:size])
            assert caught.value.reason in _STRUCTURE_FAULTS

    def test_refuses_more_than_its_cap(self, parse: Callable[[bytes], bytes], raw: bytes) -> None:
        with pytest.raises(Fault) as caught:
            parse(raw + bytes(4096))
        assert caught.value.reason is Reason.TPM_STRUCTURE_MALFORMED

    @FEW
    @given(data=st.data())
    def test_mutations_are_faults_or_marshal_again(
        self, parse: Callable[[bytes], bytes], raw: bytes, data: st.DataObject
    ) -> None:
        bent = bytearray(raw)
        for _ in range(data.draw(st.integers(1, 4))):
            bent[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
        cut = data.draw(st.integers(0, len(raw)))
        for candidate in (bytes(bent), bytes(bent[:cut]), bytes(bent) + bytes(bent[cut:])):
            assert _verdict(parse, candidate) in (candidate, *_STRUCTURE_FAULTS)


def _verdict(parse: Callable[[bytes], bytes], raw: bytes) -> bytes | Reason:
    try:
        return parse(raw)
    except Fault as fault:
        return fault.reason


@FEW
@given(st.binary(max_size=400))
def test_noise_is_a_fault(raw: bytes) -> None:
    for parse in (parse_public, parse_certify, parse_quote, parse_signature):
        with pytest.raises(Fault) as caught:
            parse(raw)
        assert caught.value.reason in _STRUCTURE_FAULTS


def test_reserved_attribute_bits_are_refused() -> None:
    for bit in (0, 3, 12, 15, 20, 31):
        with pytest.raises(Fault, match="reserved"):
            Public.parse(soft_tpm.public_area(ECC_KEY, soft_tpm.AK | 1 << bit), "p")


@pytest.mark.parametrize(
    "area",
    [
        soft_tpm.public_area(ec.generate_private_key(ec.SECP521R1()).public_key(), soft_tpm.AK),
        PUBLICS[3].replace(b"\x08\x00", b"\x04\x00", 1),  # RSA of 1024 bits
        soft_tpm.public_area(ECC_KEY, soft_tpm.AK, scheme_hash=soft_tpm.SHA1),
        soft_tpm.public_area(ECC_KEY, soft_tpm.AK, scheme=0x1A),  # ECDAA
        soft_tpm.public_area(ECC_KEY, soft_tpm.EK_LOW, aes=192, scheme=soft_tpm.NULL),
        b"\x00\x08" + PUBLICS[0][2:],  # KEYEDHASH
        PUBLICS[0][:2] + b"\x00\x04" + PUBLICS[0][4:],  # named by SHA-1
    ],
)
def test_other_algorithms_are_refused(area: bytes) -> None:
    with pytest.raises(Fault) as caught:
        Public.parse(area, "p")
    assert caught.value.reason is Reason.TPM_ALGORITHM_REFUSED


def test_a_point_off_its_curve_is_refused() -> None:
    with pytest.raises(Fault) as caught:
        Public.parse(PUBLICS[0][:-1] + bytes([PUBLICS[0][-1] ^ 1]), "p")
    assert caught.value.reason is Reason.WEAK_KEY


def test_a_coordinate_without_its_leading_zeros_is_the_same_key_by_another_name() -> None:
    key = next(k for k in iter(_key, None) if k.public_numbers().x < 1 << 248)
    padded = soft_tpm.public_area(key, soft_tpm.TLS)
    point = key.public_numbers()
    short = padded[:-68] + soft_tpm.sized(point.x.to_bytes(31, "big")) + padded[-34:]
    long, brief = Public.parse(padded, "p"), Public.parse(short, "p")
    assert brief.spki == long.spki
    assert brief.name != long.name
    assert brief.marshal() == short


def _key() -> ec.EllipticCurvePublicKey:
    return ec.generate_private_key(ec.SECP256R1()).public_key()


class TestSecondOpinions:
    def test_pytss_names_and_reads_keys_alike(self, recording: Recording) -> None:  # noqa: F811
        begin = recording.begin
        for raw in (begin.ek_public, begin.ak_public, begin.tls_public):
            ours = Public.parse(raw, "p")
            area, rest = TPMT_PUBLIC.unmarshal(raw)
            assert rest == len(raw)
            assert ours.name == bytes(area.get_name())
            theirs = load_der_public_key(TPM2B_PUBLIC(publicArea=area).to_der())
            assert ours.spki == theirs.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    def test_tpm2_print_reads_keys_alike(self, recording: Recording, tmp_path: Path) -> None:  # noqa: F811
        raw = recording.begin.ak_public
        printed = _print(tmp_path, "TPMT_PUBLIC", raw)
        ours = Public.parse(raw, "p")
        assert f"raw: 0x{int(ours.attributes):x}" in printed
        assert ours.key.x.hex() in printed  # type: ignore[union-attr]  # the AK is ECC

    def test_tpm2_print_reads_attestations_alike(self, recording: Recording, tmp_path: Path) -> None:  # noqa: F811
        evidence = recording.evidence
        certify = Attest.parse(evidence.certify_attest, AttestType.CERTIFY, "a")
        quote = Attest.parse(evidence.quote_attest, AttestType.QUOTE, "a")
        assert isinstance(certify.attested, Certified)
        assert isinstance(quote.attested, Quoted)
        printed = _print(tmp_path, "TPMS_ATTEST", evidence.quote_attest)
        counters = quote.counters
        for line in (
            f"qualifiedSigner: {quote.signer.hex()}",
            f"extraData: {quote.extra_data.hex()}",
            f"clock: {counters.clock}",
            f"resetCount: {counters.reset_count}",
            f"restartCount: {counters.restart_count}",
            f"safe: {int(counters.safe)}",
            f"pcrDigest: {quote.attested.digest.hex()}",
        ):
            assert line in printed
        assert quote.attested.selections[0].indices == recording.expected.pcrs.indices

    def test_tpm2_checkquote_agrees(self, recording: Recording, tmp_path: Path) -> None:  # noqa: F811
        evidence, ak = recording.evidence, Public.parse(recording.begin.ak_public, "p")
        Path(tmp_path, "ak.pem").write_bytes(ak.primitive.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        Path(tmp_path, "quote").write_bytes(evidence.quote_attest)
        Path(tmp_path, "signature").write_bytes(evidence.quote_signature)
        nonce = recording.expected.qualifying("quote").hex()
        command = ["tpm2_checkquote", "-u", "ak.pem", "-m", "quote", "-s", "signature", "-g", "sha256", "-q", nonce]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)


def _print(folder: Path, kind: str, raw: bytes) -> str:
    (folder / "raw").write_bytes(raw)
    command = ["tpm2_print", "-t", kind, "raw"]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout
