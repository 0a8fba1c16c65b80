"""What a profile makes of its terms, judged by our lint, by `openssl`, and by breaking one thing at a time."""

from __future__ import annotations

import subprocess
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.faults import Fault
from foundation.fields import Fields
from foundation.identifiers import Kind, SpiffeId
from foundation.identity import AttestationClass
from foundation.reasons import Reason
from foundation.wire.attestation import CertifiedAttestation, certified_attestation
from pki import lint
from pki.profile import PROFILES, Lifetimes, ProfileName, check_key, draft_certificate
from pki.signer import FileSigner, seal_certificate
from tests.support.issuing import CA, DRAFT, ISSUER, KEY, NOW, SPKI, draft, spki_of, terms


@pytest.mark.parametrize("name", list(ProfileName))
async def test_every_profile_passes_lint_and_openssl(name: ProfileName, tmp_path: Path) -> None:
    wanted = terms(name)
    made = draft(wanted)
    assert lint.lint(made, wanted, ISSUER) == []
    sealed = await seal_certificate(FileSigner(CA, KEY), made)
    (tmp_path / "ca.pem").write_bytes(CA.public_bytes(serialization.Encoding.PEM))
    (tmp_path / "leaf.pem").write_bytes(sealed.public_bytes(serialization.Encoding.PEM))
    purpose = "sslserver" if name is ProfileName.SERVER else "sslclient"
    options = ["-x509_strict", "-partial_chain", "-attime", str(NOW), "-purpose", purpose]
    command = ["openssl", "verify", *options, "-CAfile", "ca.pem", "leaf.pem"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)  # noqa: ASYNC221  # alone on its loop
    assert found.returncode == 0, found.stdout + found.stderr


def test_a_servers_certificate_is_no_clients() -> None:
    usages = draft(terms(ProfileName.SERVER)).extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usages) == [x509.ExtendedKeyUsageOID.SERVER_AUTH]


def test_the_attestation_stands_in_the_certificate() -> None:
    found = certified_attestation(draft(terms()))
    assert found == CertifiedAttestation(AttestationClass.VIRTUAL, NOW + 300)


def test_a_lifetime_never_outlives_the_issuer() -> None:
    issuer = replace(ISSUER, not_after=NOW + 600)
    made = DRAFT.certificate(draft_certificate(terms(), issuer))
    assert int(made.not_valid_after_utc.timestamp()) == NOW + 600


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"lifetime": 24 * 3600 + 1}, Reason.PROFILE_REFUSED),
        ({"lifetime": -1}, Reason.PROFILE_REFUSED),
        ({"now": NOW + 400 * 86400}, Reason.PROFILE_REFUSED),
        ({"now": NOW - 2000}, Reason.PROFILE_REFUSED),
        ({"names": ("evil.example",)}, Reason.PROFILE_REFUSED),
        ({"identity": SpiffeId("fleet.example", Kind.OPERATOR, "x")}, Reason.PROFILE_REFUSED),
        ({"spki": b"\x30\x03\x02\x01\x00"}, Reason.WEAK_KEY),
        ({"spki": SPKI + b"\x00"}, Reason.WEAK_KEY),
        ({"spki": spki_of(ec.generate_private_key(ec.SECP192R1()))}, Reason.WEAK_KEY),
        ({"spki": spki_of(rsa.generate_private_key(65537, 1024))}, Reason.WEAK_KEY),  # noqa: S505  # refused
        ({"spki": spki_of(rsa.generate_private_key(3, 2048))}, Reason.WEAK_KEY),
        ({"spki": spki_of(ed25519.Ed25519PrivateKey.generate())}, Reason.WEAK_KEY),
    ],
)
def test_what_the_profile_refuses(change: dict[str, object], reason: Reason) -> None:
    with pytest.raises(Fault) as caught:
        draft(terms(**change))
    assert caught.value.reason is reason


@pytest.mark.parametrize(
    "name", ["*.example", "a_b", "-a.example", "a..b", "", "1.2.3", "x" * 64, "A.example", "é.example"]
)
def test_odd_listener_names_are_refused(name: str) -> None:
    with pytest.raises(Fault) as caught:
        draft(terms(ProfileName.SERVER, names=(name,)))
    assert caught.value.reason is Reason.PROFILE_REFUSED


def _without(extension: type[x509.ExtensionType]) -> x509.CertificateBuilder:
    whole = draft(terms())
    return _rebuild(whole, [one for one in whole.extensions if not isinstance(one.value, extension)])


def _rebuild(whole: x509.Certificate, extensions: list[x509.Extension[x509.ExtensionType]]) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder(
        whole.issuer,
        whole.subject,
        whole.public_key(),
        whole.serial_number,
        whole.not_valid_before_utc,
        whole.not_valid_after_utc,
    )
    for one in extensions:
        builder = builder.add_extension(one.value, one.critical)
    return builder


def _swapped(value: x509.ExtensionType, critical: bool) -> x509.CertificateBuilder:
    return _without(type(value)).add_extension(value, critical)


def _usage(**more: bool) -> x509.KeyUsage:
    names = (
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
    )
    bits = {name: more.get(name, False) for name in names}
    return x509.KeyUsage(digital_signature=True, encipher_only=False, decipher_only=False, **bits)


_URI = x509.UniformResourceIdentifier("spiffe://fleet.example/node/edge-1")
BROKEN = {
    "no constraints": _without(x509.BasicConstraints),
    "no usage": _without(x509.KeyUsage),
    "no san": _without(x509.SubjectAlternativeName),
    "no aki": _without(x509.AuthorityKeyIdentifier),
    "a ca": _swapped(x509.BasicConstraints(True, None), True),
    "uncritical constraints": _swapped(x509.BasicConstraints(False, None), False),
    "signs certificates": _swapped(_usage(key_cert_sign=True), True),
    "uncritical usage": _swapped(_usage(), False),
    "server too": _swapped(
        x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.CLIENT_AUTH, x509.ExtendedKeyUsageOID.SERVER_AUTH]), False
    ),
    "two uris": _swapped(
        x509.SubjectAlternativeName([_URI, x509.UniformResourceIdentifier("spiffe://fleet.example/node/b")]), False
    ),
    "a dns name": _swapped(x509.SubjectAlternativeName([_URI, x509.DNSName("a.example")]), False),
    "a mail address": _swapped(x509.SubjectAlternativeName([_URI, x509.RFC822Name("a@example.com")]), False),
    "another's name": _swapped(
        x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://fleet.example/node/b")]), False
    ),
    "another issuer's key": _swapped(x509.AuthorityKeyIdentifier(b"x" * 20, None, None), False),
    "one extension more": _without(x509.OCSPNoCheck).add_extension(x509.OCSPNoCheck(), False),
}


@pytest.mark.parametrize("flaw", list(BROKEN))
def test_lint_finds_each_flaw(flaw: str) -> None:
    made = DRAFT.certificate(BROKEN[flaw])
    assert lint.lint(made, terms(), ISSUER) != []
    with pytest.raises(Fault) as caught:
        lint.check(made, terms(), ISSUER)
    assert caught.value.reason is Reason.LINT_FAILED


@pytest.mark.parametrize(
    "change",
    [
        {"serial": (1 << 143) | 6},
        {"attestation": AttestationClass.HARDWARE},
        {"attested_until": NOW + 301},
        {"spki": spki_of(ec.generate_private_key(ec.SECP256R1()))},
        {"now": NOW + 3600},
        {"identity": SpiffeId("fleet.example", Kind.NODE, "edge-2")},
    ],
)
def test_lint_compares_with_the_terms(change: dict[str, object]) -> None:
    assert lint.lint(draft(terms()), replace(terms(), **change), ISSUER) != []  # type: ignore[arg-type]


def test_lint_refuses_small_serials_and_long_lives() -> None:
    small = terms(serial=12345)
    assert any("64 bits" in text for text in lint.lint(draft(small), small, ISSUER))
    long = replace(terms(), profile=replace(PROFILES[ProfileName.NODE], lifetime=7200, longest=7200))
    assert any("longer" in text for text in lint.lint(draft(long), replace(terms(), profile=_SHORT), ISSUER))


_SHORT = replace(PROFILES[ProfileName.NODE], longest=3600)


def test_lifetimes_are_bounded_by_their_profile() -> None:
    assert Lifetimes.parse(Fields({"node": "30m"}, "x", Reason.SETTING_INVALID)).node == 1800
    for bad in ({"node": "25h"}, {"node": "1s"}, {"nodes": "1h"}):
        with pytest.raises(Fault):
            Lifetimes.parse(Fields(bad, "x", Reason.SETTING_INVALID))


@given(st.sampled_from(list(AttestationClass)), st.integers(0, 253402300799))
def test_the_attestation_extension_comes_back(attestation: AttestationClass, until: int) -> None:
    value = CertifiedAttestation(attestation, until)
    assert CertifiedAttestation.decode(value.encode()) == value


@settings(max_examples=200)
@given(st.binary(max_size=40))
def test_the_attestation_extension_has_one_spelling(raw: bytes) -> None:
    with suppress(Fault):
        assert CertifiedAttestation.decode(raw).encode() == raw


@settings(max_examples=100)
@given(st.binary(max_size=200))
def test_no_bytes_crash_the_key_check(raw: bytes) -> None:
    with pytest.raises(Fault) as caught:
        check_key(raw)
    assert caught.value.reason is Reason.WEAK_KEY
