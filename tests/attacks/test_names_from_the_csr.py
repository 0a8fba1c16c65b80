"""attacks.md, "names from the CSR" (GHSA-g892-p242-8g86): every SAN type, wildcard, NUL, IDN and oversize in a request:
the profile decides, not the request. What reaches issuing is the key alone."""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from foundation.faults import Fault
from foundation.identifiers import Kind, SpiffeId
from foundation.reasons import Reason
from pki.entries import Expected
from pki.issue import IssueRequest
from pki.profile import ProfileName
from pki.tpm.request import check_request
from tests.support.site import ACTOR, TRUST_DOMAIN, Site, attested, open_site

VICTIM = f"spiffe://{TRUST_DOMAIN}/operator/admin"
KEY = ec.generate_private_key(ec.SECP256R1())
NAMES: dict[str, x509.GeneralName] = {
    "another's SPIFFE ID": x509.UniformResourceIdentifier(VICTIM),
    "a URI": x509.UniformResourceIdentifier("https://control.example/"),
    "a DNS name": x509.DNSName("control.example"),
    "a wildcard": x509.DNSName("*.example"),
    "a NUL": x509.DNSName("control.example\x00.evil.example"),
    "an IDN": x509.DNSName("xn--80ak6aa92e.example"),
    "an oversize name": x509.DNSName("a" * 4000),
    "an IPv4 address": x509.IPAddress(ipaddress.ip_address("10.0.0.1")),
    "an IPv6 network": x509.IPAddress(ipaddress.ip_network("::/0")),
    "a mail address": x509.RFC822Name("admin@control.example"),
    "a directory name": x509.DirectoryName(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "admin")])),
    "a registered ID": x509.RegisteredID(x509.ObjectIdentifier("1.2.3.4")),
    "another name": x509.OtherName(x509.ObjectIdentifier("1.3.6.1.4.1.311.20.2.3"), b"\x0c\x05admin"),
}


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with open_site(tmp_path) as opened:
        yield opened


def _request(name: x509.GeneralName) -> bytes:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "admin")])
    builder = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(subject)
        .add_extension(x509.SubjectAlternativeName([name]), True)
        .add_extension(x509.BasicConstraints(True, None), True)
        .add_extension(x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.SERVER_AUTH]), True)
    )
    return builder.sign(KEY, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def _spki() -> bytes:
    return KEY.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


@pytest.mark.parametrize("name", list(NAMES))
async def test_a_request_gives_its_key_and_nothing_else(site: Site, name: str) -> None:
    check_request(_request(NAMES[name]), _spki(), "csr")
    node = await site.expect()
    asked = IssueRequest(node, ProfileName.NODE, _spki(), ACTOR, attested=attested(site.clock, node.name))
    leaf = x509.load_der_x509_certificate((await site.authority.issue(asked)).chain[0])
    found = leaf.extensions
    assert list(found.get_extension_for_class(x509.SubjectAlternativeName).value) == [
        x509.UniformResourceIdentifier(str(node))
    ]
    assert leaf.subject.rfc4514_string() == f"CN={node.name}"
    assert not found.get_extension_for_class(x509.BasicConstraints).value.ca
    usages = found.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usages) == [x509.ExtendedKeyUsageOID.CLIENT_AUTH]


@pytest.mark.parametrize("name", ["control.example", "10.0.0.1", "*.example"])
async def test_a_callers_certificate_takes_no_listeners_names(site: Site, name: str) -> None:
    node = await site.expect()
    with pytest.raises(Fault) as caught:
        await site.issue(node, names=(name,))
    assert caught.value.reason is Reason.PROFILE_REFUSED
    assert await site.authority.ledger.page(node) == ()


@pytest.mark.parametrize(
    "name", ["*.example", "a\x00.example", "é.example", "A.example", "a" * 64, "a.b/c", "a b", ".", "0x7f.1", ""]
)
async def test_listeners_names_are_exact(site: Site, name: str) -> None:
    gateway = SpiffeId(TRUST_DOMAIN, Kind.GATEWAY, "gw")
    await site.authority.inventory.add(Expected(gateway), ACTOR)
    with pytest.raises(Fault) as caught:
        await site.authority.issue(IssueRequest(gateway, ProfileName.SERVER, _spki(), ACTOR, names=(name,)))
    assert caught.value.reason is Reason.PROFILE_REFUSED


@pytest.mark.parametrize("name", ["another's SPIFFE ID", "a DNS name", "a mail address"])
async def test_a_profile_that_went_wrong_is_stopped_by_lint(
    site: Site, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    node = await site.expect()
    asked = [x509.UniformResourceIdentifier(str(node)), NAMES[name]]
    monkeypatch.setattr("pki.profile.san", lambda terms: x509.SubjectAlternativeName(asked))
    with pytest.raises(Fault) as caught:
        await site.issue(node)
    assert caught.value.reason is Reason.LINT_FAILED
    assert await site.authority.ledger.page(node) == ()
