"""The node's TLS key: in the TPM, or in software where the authority's settings allow nodes without one.

A handshake's signature is made while `ssl` does the handshake, on its thread: an event loop stands still for that long
(1 ms with an emulator, 50 to 300 ms with hardware). A node makes few handshakes; a program with more connects from a
thread.
"""

from __future__ import annotations

import os
import ssl
from datetime import UTC, datetime
from typing import Any, NoReturn, Protocol

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from agent.openssl import use_foreign_key
from agent.tpm import Tpm
from agent.tpm_values import TlsKeyFile
from foundation.faults import Fault
from foundation.reasons import Reason

_ECDSA_SHA256 = b"\x00\x18\x00\x0b"  # TPMT_SIGNATURE: TPM_ALG_ECDSA, TPM_ALG_SHA256 (TPM 2.0 Part 2 §11.3.4)


class TlsKey(Protocol):
    """A P-256 key that signs for this node."""

    @property
    def spki(self) -> bytes:
        """The DER SubjectPublicKeyInfo (RFC 5280 §4.1.2.7)."""
        ...

    def private_key(self) -> ec.EllipticCurvePrivateKey:
        """The key as `cryptography` uses it. Of one in a TPM, only `sign` and the public part work."""
        ...

    def install(self, context: ssl.SSLContext, chain: tuple[bytes, ...]) -> None:
        """Let `context` authenticate with this key and `chain` (DER, leaf first). Raises `Fault(TLS_KEY_UNUSABLE)`."""
        ...


class SoftwareTlsKey:
    """A key in this process's memory and the node's folder."""

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key

    @classmethod
    def generate(cls) -> SoftwareTlsKey:
        return cls(ec.generate_private_key(ec.SECP256R1()))

    @classmethod
    def parse(cls, pem: bytes) -> SoftwareTlsKey:
        """Raises `Fault(TLS_KEY_UNUSABLE)`."""
        try:
            key = serialization.load_pem_private_key(pem, None)
        except (ValueError, TypeError):
            raise Fault(Reason.TLS_KEY_UNUSABLE, "not an unencrypted PEM key", field="tls_key") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise Fault(Reason.TLS_KEY_UNUSABLE, "not an elliptic-curve key", field="tls_key")
        return cls(key)

    @property
    def pem(self) -> bytes:
        return self._key.private_bytes(Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())

    @property
    def spki(self) -> bytes:
        return self._key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    def private_key(self) -> ec.EllipticCurvePrivateKey:
        return self._key

    def install(self, context: ssl.SSLContext, chain: tuple[bytes, ...]) -> None:
        pems = [x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM) for der in chain]
        # `ssl` reads keys from files only: this one is in memory, and gone when it is closed.
        with os.fdopen(os.memfd_create("tls"), "wb") as file:
            file.write(self.pem + b"".join(pems))
            file.flush()
            context.load_cert_chain(f"/proc/self/fd/{file.fileno()}")


class TpmTlsKey:
    """A key inside the TPM. `signatures` counts what the TPM signed; `fault` is why it last did not."""

    def __init__(self, tpm: Tpm, file: TlsKeyFile) -> None:
        self._tpm = tpm
        self.file = file
        self.signatures = 0
        self.fault: Fault | None = None
        key = serialization.load_der_public_key(file.spki)
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
            raise Fault(Reason.TLS_KEY_UNUSABLE, "not a P-256 key", field="tls_key")
        self.public_key = key

    @property
    def spki(self) -> bytes:
        return self.file.spki

    def private_key(self) -> ec.EllipticCurvePrivateKey:
        return _KeyInTpm(self)

    def install(self, context: ssl.SSLContext, chain: tuple[bytes, ...]) -> None:
        point = self.public_key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        use_foreign_key(context, chain, point, self)

    def sign(self, digest: bytes) -> bytes:
        """An ECDSA signature in DER over a SHA-256 digest. Raises `Fault(TPM_UNAVAILABLE | TLS_KEY_UNUSABLE)`, and
        keeps it in `fault`, for OpenSSL would lose it."""
        try:
            signature = _der_signature(self._tpm.sign(self.file, digest))
        except Fault as fault:
            self.fault = fault
            raise
        self.signatures += 1
        return signature


class _KeyInTpm(ec.EllipticCurvePrivateKey):
    """What `cryptography` needs of a key to sign a certificate request with it."""

    def __init__(self, key: TpmTlsKey) -> None:
        self._key = key

    def sign(self, data: Any, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:
        algorithm = signature_algorithm.algorithm
        if not isinstance(algorithm, hashes.SHA256):
            raise Fault(Reason.TLS_KEY_UNUSABLE, "it signs with SHA-256 alone", field="tls_key")
        digest = hashes.Hash(algorithm)
        digest.update(data)
        return self._key.sign(digest.finalize())

    def public_key(self) -> ec.EllipticCurvePublicKey:
        return self._key.public_key

    @property
    def curve(self) -> ec.EllipticCurve:
        return self._key.public_key.curve

    @property
    def key_size(self) -> int:
        return self.curve.key_size

    def exchange(self, algorithm: ec.ECDH, peer_public_key: ec.EllipticCurvePublicKey) -> NoReturn:
        raise _stays_inside()

    def private_numbers(self) -> NoReturn:
        raise _stays_inside()

    def private_bytes(self, *_: object) -> NoReturn:
        raise _stays_inside()

    def __copy__(self) -> _KeyInTpm:
        return self

    def __deepcopy__(self, memo: object) -> _KeyInTpm:
        return self


def self_test(key: TpmTlsKey) -> int:
    """A real TLS 1.3 handshake in memory, both sides of which authenticate with `key`, by a certificate made for it
    now. That a context accepts a key proves nothing. The number of signatures that the TPM made meanwhile; raises
    `Fault(TLS_KEY_UNUSABLE)` unless each side's handshake took one."""
    certificate = _throwaway_certificate(key)
    before = key.signatures
    try:
        _handshake(key, certificate)
    except ssl.SSLError as error:
        raise key.fault or Fault(Reason.TLS_KEY_UNUSABLE, str(error), field="tls_key") from error
    made = key.signatures - before
    if made != 2:
        raise Fault(Reason.TLS_KEY_UNUSABLE, f"the TPM made {made} signatures of a handshake's 2", field="tls_key")
    return made


def create_csr(key: TlsKey) -> bytes:
    """A DER PKCS #10 (RFC 2986) with an empty subject: the authority's profile decides the name."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key.private_key(), hashes.SHA256()).public_bytes(Encoding.DER)


def _throwaway_certificate(key: TpmTlsKey) -> bytes:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "self-test")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime(2000, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2099, 12, 31, tzinfo=UTC))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    )
    return builder.sign(key.private_key(), hashes.SHA256()).public_bytes(Encoding.DER)


def _handshake(key: TpmTlsKey, certificate: bytes) -> None:
    sides = []
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    for protocol, inward, outward in (
        (ssl.PROTOCOL_TLS_CLIENT, to_client, to_server),
        (ssl.PROTOCOL_TLS_SERVER, to_server, to_client),
    ):
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=certificate)
        key.install(context, (certificate,))
        sides.append(context.wrap_bio(inward, outward, server_side=protocol == ssl.PROTOCOL_TLS_SERVER))
    for _round in range(4):
        done = [_advance(side) for side in sides]  # both, each round
        if all(done):
            return
    raise Fault(Reason.TLS_KEY_UNUSABLE, "the self-test's handshake does not end", field="tls_key")


def _advance(side: ssl.SSLObject) -> bool:
    try:
        side.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True


def _der_signature(signature: bytes) -> bytes:
    """ECDSA-Sig-Value (RFC 3279 §2.2.3) from TPMT_SIGNATURE."""
    if not signature.startswith(_ECDSA_SHA256):
        raise Fault(Reason.TLS_KEY_UNUSABLE, "the TPM signed by another scheme", field="tls_key")
    r_end = 6 + int.from_bytes(signature[4:6], "big")
    r, s = signature[6:r_end], signature[r_end + 2 :]
    return utils.encode_dss_signature(int.from_bytes(r, "big"), int.from_bytes(s, "big"))


def _stays_inside() -> Fault:
    return Fault(Reason.TLS_KEY_UNUSABLE, "the private key does not leave the TPM", field="tls_key")
