"""Keys in files, and signatures that are checked before they leave."""

from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from foundation.faults import Fault
from foundation.reasons import Reason
from pki.revocation import crl_builder
from pki.signer import Draft, FileSigner, close_key, open_key, seal_certificate, seal_crl
from tests.support.issuing import CA, ISSUER, KEY, NOW, draft, terms


class Faulty(FileSigner):
    """Signs something else than it was given, as a broken module would."""

    async def sign(self, message: bytes) -> bytes:
        return await super().sign(message + b"!")


async def test_the_sealed_certificate_is_the_draft_but_for_its_signature() -> None:
    made = draft(terms())
    sealed = await seal_certificate(FileSigner(CA, KEY), made)
    assert sealed.tbs_certificate_bytes == made.tbs_certificate_bytes
    assert sealed.signature != made.signature
    sealed.verify_directly_issued_by(CA)
    with pytest.raises(InvalidSignature):
        made.verify_directly_issued_by(CA)


async def test_a_faulty_signature_never_leaves() -> None:
    with pytest.raises(Fault) as caught:
        await seal_certificate(Faulty(CA, KEY), draft(terms()))
    assert caught.value.reason is Reason.SIGNER_FAILED


async def test_a_crl_is_sealed_as_a_certificate_is() -> None:
    made = Draft(CA).crl(crl_builder(ISSUER, 3, NOW, 3600))
    sealed = await seal_crl(FileSigner(CA, KEY), made)
    assert sealed.is_signature_valid(KEY.public_key())
    with pytest.raises(Fault):
        await seal_crl(Faulty(CA, KEY), made)


def test_a_key_needs_its_passphrase() -> None:
    pem = close_key(KEY, b"correct")
    assert b"ENCRYPTED" in pem
    assert open_key(pem, b"correct").private_numbers() == KEY.private_numbers()
    plain = KEY.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for wrong in ((pem, b"wrong"), (pem, b""), (plain, b"correct"), (b"no key", b"correct")):
        with pytest.raises(Fault) as caught:
            open_key(*wrong)
        assert caught.value.reason is Reason.SIGNER_FAILED
        assert "correct" not in str(caught.value)


def test_the_key_has_to_be_the_certificates() -> None:
    with pytest.raises(Fault) as caught:
        FileSigner(CA, ec.generate_private_key(ec.SECP256R1()))
    assert caught.value.reason is Reason.SIGNER_FAILED


async def test_p384_signs_with_sha384() -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    builder = x509.CertificateBuilder(
        CA.subject, CA.subject, key.public_key(), 9, CA.not_valid_before_utc, CA.not_valid_after_utc
    )
    ca = builder.add_extension(x509.SubjectKeyIdentifier(b"z" * 20), False).sign(key, hashes.SHA384())
    sealed = await seal_crl(FileSigner(ca, key), Draft(ca).crl(crl_builder(ISSUER, 1, NOW, 60)))
    assert isinstance(sealed.signature_hash_algorithm, hashes.SHA384)
