"""attacks.md, gateway: "cached verdict outlives validity". The authority's half: a maker's issuer is remembered so that
its path need not be verified again, and that never lets in a TPM that the whole verification would refuse, nor into
another class.
"""

from __future__ import annotations

import datetime
from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from deploy.demo.tpm_maker import TpmMaker
from foundation.faults import Fault
from foundation.identity import AttestationClass
from foundation.reasons import Reason
from pki.tpm import issuers
from pki.tpm.endorsement import MakerTrust
from pki.tpm.issuers import KnownIssuers
from pki.tpm.verdict import identify
from tests.support.authorities import authority, named
from tests.support.soft_tpm import NOW, SoftTpm

DAY = 24 * 3600.0
LATER = NOW + 30 * DAY


def at(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(int(seconds), datetime.UTC)


def made(*, root_ends: float = NOW + 900 * DAY, issuer_ends: float = NOW + 900 * DAY) -> TpmMaker:
    """A maker whose authorities end when the test says."""
    root_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root_name, name = named("Root"), named("Issuer")
    root = authority(root_name, root_key.public_key(), root_name, root_key, end=at(root_ends))
    issuer = authority(name, key.public_key(), root_name, root_key, end=at(issuer_ends))
    return TpmMaker(root, issuer, key)


def remembering(trust: MakerTrust, maker: TpmMaker, chain: tuple[bytes, ...] = ()) -> KnownIssuers:
    known = KnownIssuers(trust)
    identify(SoftTpm(maker).begin(ek_chain=chain or maker.chain), known, NOW)
    assert len(known) == 1
    return known


def refused(known: KnownIssuers, tpm: SoftTpm, now: float, chain: tuple[bytes, ...]) -> Reason:
    with pytest.raises(Fault) as caught:
        identify(tpm.begin(ek_chain=chain), known, now)
    return caught.value.reason


def test_an_authority_that_has_ended_lets_nobody_in_any_more() -> None:
    for maker in (made(root_ends=LATER), made(issuer_ends=LATER)):
        known = remembering(MakerTrust(hardware=(maker.root,)), maker)
        assert identify(SoftTpm(maker).begin(), known, LATER).attestation is AttestationClass.HARDWARE
        assert refused(known, SoftTpm(maker), LATER + 1, maker.chain) is Reason.EK_CHAIN_UNTRUSTED


def test_who_shows_a_known_chain_is_not_of_that_maker_yet() -> None:
    maker = made()
    known = remembering(MakerTrust(hardware=(maker.root,)), maker)
    thief = replace(maker, intermediate_key=ec.generate_private_key(ec.SECP256R1()))  # the name alone
    assert refused(known, SoftTpm(thief), NOW, maker.chain) is Reason.EK_CHAIN_UNTRUSTED
    assert refused(known, SoftTpm(TpmMaker.create()), NOW, maker.chain) is Reason.EK_CHAIN_UNTRUSTED


def test_a_certificate_that_has_ended_is_refused_as_ever() -> None:
    maker = made()
    known = remembering(MakerTrust(hardware=(maker.root,)), maker)
    tpm = SoftTpm(maker)
    short = maker.sign(maker.ek_builder(tpm.ek.public_key(), not_after=at(LATER)))  # type: ignore[arg-type]
    begin = tpm.begin(ek_certificate=short.public_bytes(Encoding.DER))
    assert identify(begin, known, LATER).attestation is AttestationClass.HARDWARE
    with pytest.raises(Fault) as caught:
        identify(begin, known, LATER + 1)
    assert caught.value.reason is Reason.EK_CERTIFICATE_EXPIRED


def test_a_path_to_a_virtual_root_that_opens_later_is_seen() -> None:
    """Where a path to both kinds of root exists, the weaker claim is the true one: also once it was not there."""
    maker, key, name = made(), ec.generate_private_key(ec.SECP256R1()), named("Emulator")
    emulator = authority(name, key.public_key(), name, key)
    subject, issuer_key = maker.intermediate.subject, maker.intermediate_key.public_key()
    cross = authority(subject, issuer_key, name, key, start=at(LATER))
    chain = (*maker.chain, cross.public_bytes(Encoding.DER))
    trust = MakerTrust(hardware=(maker.root,), virtual=(emulator,))
    known = remembering(trust, maker, chain)
    for now, expected in ((LATER - 1, AttestationClass.HARDWARE), (LATER, AttestationClass.VIRTUAL)):
        begin = SoftTpm(maker).begin(ek_chain=chain)
        assert identify(begin, known, now).attestation is identify(begin, trust, now).attestation is expected


def test_other_certificates_along_with_a_known_issuer_are_another_chain() -> None:
    maker, key, name = made(), ec.generate_private_key(ec.SECP256R1()), named("Emulator")
    emulator = authority(name, key.public_key(), name, key)
    cross = authority(maker.intermediate.subject, maker.intermediate_key.public_key(), name, key)
    known = remembering(MakerTrust(hardware=(maker.root,), virtual=(emulator,)), maker)
    begin = SoftTpm(maker).begin(ek_chain=(*maker.chain, cross.public_bytes(Encoding.DER)))
    assert identify(begin, known, NOW).attestation is AttestationClass.VIRTUAL
    assert identify(SoftTpm(maker).begin(), known, NOW).attestation is AttestationClass.HARDWARE


def test_where_names_are_constrained_nothing_is_remembered() -> None:
    root_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root_name, name = named("Root"), named("Issuer")
    root = authority(root_name, root_key.public_key(), root_name, root_key)
    constraints = x509.NameConstraints([x509.DNSName("maker.example")], None)
    maker = TpmMaker(root, authority(name, key.public_key(), root_name, root_key, constraints), key)
    known = KnownIssuers(MakerTrust(hardware=(root,)))
    assert identify(SoftTpm(maker).begin(), known, NOW).attestation is AttestationClass.HARDWARE
    assert len(known) == 0


def test_no_more_chains_are_kept_than_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(issuers, "MAX_CHAINS", 2)
    maker, other = made(), made()
    known = KnownIssuers(MakerTrust(hardware=(maker.root, other.root)))
    for chain in (maker.chain, maker.chain + other.chain, other.chain + maker.chain):
        assert identify(SoftTpm(maker).begin(ek_chain=chain), known, NOW).attestation is AttestationClass.HARDWARE
    assert len(known) == 2
