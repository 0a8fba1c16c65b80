"""Who a client is: exactly one SPIFFE ID of our trust domain, in a leaf for client authentication."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from foundation.faults import Fault
from foundation.reasons import Reason
from gateway.proxy.identify import identify
from tests.fakes.trust import TRUST_DOMAIN, spiffe
from tests.support.certificates import SmallAuthority

UID = "spiffe://fleet.example/node/edge-1"
START = datetime.datetime(2026, 11, 1, tzinfo=datetime.UTC)


def leaf(
    *uris: str, usage: x509.ObjectIdentifier | None = ExtendedKeyUsageOID.CLIENT_AUTH, ca: bool | None = False
) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "spiffe://fleet.example/node/other")])
    end = START + datetime.timedelta(hours=1)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 0xABC, START, end)
    if ca is not None:
        builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    if usage is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    if uris:
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris])
        builder = builder.add_extension(names, critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def test_a_proven_leaf_names_its_peer(tmp_path: Path) -> None:
    pair = SmallAuthority(tmp_path).client(UID, serial=0x2A)
    certificate = x509.load_pem_x509_certificate(pair.certificate.read_bytes())
    der = certificate.public_bytes(serialization.Encoding.DER)
    peer = identify(der, TRUST_DOMAIN)
    assert (peer.id, peer.serial, peer.certificate) == (spiffe(), "2a", der)
    assert peer.not_after == certificate.not_valid_after_utc.timestamp()
    assert peer.not_before == certificate.not_valid_before_utc.timestamp()


@pytest.mark.parametrize(
    "certificate",
    [
        leaf(),
        leaf(UID, UID),
        leaf(UID, "spiffe://fleet.example/node/edge-2"),
        leaf("https://fleet.example/node/edge-1"),
        leaf("spiffe://other.example/node/edge-1"),
        leaf("spiffe://fleet.example/admin/edge-1"),
        leaf("spiffe://fleet.example/node/../edge-1"),
        leaf("spiffe://FLEET.example/node/edge-1"),
        leaf(UID, usage=ExtendedKeyUsageOID.SERVER_AUTH),
        leaf(UID, usage=ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE),
        leaf(UID, usage=None),
        leaf(UID, ca=True),
        leaf(UID) + b"\0",
        leaf(UID)[:-1],
        b"",
        bytes(20_000),
    ],
)
def test_what_is_not_exactly_that_is_refused(certificate: bytes) -> None:
    with pytest.raises(Fault) as refused:
        identify(certificate, TRUST_DOMAIN)
    assert refused.value.reason is Reason.CLIENT_CERTIFICATE_INVALID


def test_no_certificate_is_its_own_reason() -> None:
    with pytest.raises(Fault) as refused:
        identify(None, TRUST_DOMAIN)
    assert refused.value.reason is Reason.CLIENT_CERTIFICATE_REQUIRED
