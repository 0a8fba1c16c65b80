"""A certificate authority of a few lines, for tests of what rests on TLS and not on our own authority."""

from __future__ import annotations

import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from foundation.tls import KeyPair

_DAY = datetime.timedelta(days=1)


class SmallAuthority:
    """A root that issues leaves into PEM files."""

    def __init__(self, folder: Path, name: str = "root") -> None:
        self.folder = folder
        self.key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.certificate = (
            _builder(subject, subject, self.key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_usage(ca=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()), critical=False)
            .sign(self.key, hashes.SHA256())
        )

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def root(self) -> Path:
        """The root's certificate as a PEM file."""
        path = self.folder / "root.pem"
        if not path.exists():
            path.write_bytes(self.pem)
        return path

    def service(self, spiffe_id: str, name: str, *hosts: str) -> KeyPair:
        """The certificate of something that both serves and calls, by its SPIFFE ID and DNS names."""
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(spiffe_id), *map(x509.DNSName, hosts)]
        return self._leaf(name, names, ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)

    def services(self, name: str, *spiffe_ids: str) -> KeyPair:
        """A certificate with as many SPIFFE IDs, which none should have."""
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(each) for each in spiffe_ids]
        return self._leaf(name, names, ExtendedKeyUsageOID.SERVER_AUTH)

    def server(self, name: str = "server", *hosts: str) -> KeyPair:
        """A server certificate for `hosts` (DNS names; `localhost` when none is named)."""
        names = [x509.DNSName(host) for host in hosts or ("localhost",)]
        return self._leaf(name, names, ExtendedKeyUsageOID.SERVER_AUTH)

    def client(self, spiffe_id: str, name: str = "client", *, days: int = 1, serial: int = 0) -> KeyPair:
        """A client certificate; `days` below zero makes one that has expired."""
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(spiffe_id)]
        return self._leaf(name, names, ExtendedKeyUsageOID.CLIENT_AUTH, days=days, serial=serial)

    def _leaf(
        self,
        name: str,
        names: list[x509.GeneralName] | list[x509.DNSName],
        *usages: x509.ObjectIdentifier,
        days: int = 1,
        serial: int = 0,
    ) -> KeyPair:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        issuer = self.key.public_key()
        certificate = (
            _builder(subject, self.certificate.subject, key.public_key(), days=days, serial=serial)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(ca=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        return write_pair(self.folder, name, certificate, key)


def write_pair(folder: Path, name: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> KeyPair:
    """PEM files `name`.pem and `name`.key in `folder`."""
    pair = KeyPair(folder / f"{name}.pem", folder / f"{name}.key")
    pair.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    pair.key.touch(mode=0o600)
    pair.key.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return pair


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, *, days: int = 1, serial: int = 0
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return x509.CertificateBuilder(
        subject_name=subject,
        issuer_name=issuer,
        public_key=key,
        serial_number=serial or x509.random_serial_number(),
        not_valid_before=now - 10 * _DAY,
        not_valid_after=now + days * _DAY,
    )


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )
