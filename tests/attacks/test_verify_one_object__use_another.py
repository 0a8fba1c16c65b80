"""Attack: verify one object, use another (SPIRE 1.14.6, 1.15.1): signed is not parsed.

What is used is what was verified, to the octet: the structures that are parsed are those that were signed, the Name is
over the public area that is used, the issued key is the certified one, the EK that gets the credential is that of the
certificate that was checked.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from deploy.demo.tpm_maker import TpmMaker
from foundation.faults import Fault
from foundation.reasons import Reason
from pki.tpm import attest
from pki.tpm.attest import Attest, AttestType, Certified
from pki.tpm.endorsement import MakerTrust
from pki.tpm.public import Public, name_of
from pki.tpm.verdict import Attested, EnrolledKeys, identify, verify
from tests.support.soft_tpm import NOW, SoftTpm, asked, request, signature

MAKER = TpmMaker.create()


def judge(tpm: SoftTpm, **changes: Any) -> Attested:
    expected, keys = asked(), EnrolledKeys.parse(tpm.ak_area, tpm.tls_area)
    return verify(keys, tpm.evidence(expected, **changes), expected, None, reference_required=False)


def refused(reason: Reason, tpm: SoftTpm, **changes: Any) -> None:
    with pytest.raises(Fault) as caught:
        judge(tpm, **changes)
    assert caught.value.reason is reason


def test_a_structure_beside_the_signed_one_is_refused() -> None:
    """The signature of one good quote, the octets of another."""
    tpm, expected = SoftTpm(MAKER), asked()
    quote = tpm.quote(expected.qualifying("quote"))
    other = tpm.quote(expected.qualifying("quote"), clock=(100_000, 7, 0, 0))
    refused(Reason.ATTEST_SIGNATURE, tpm, quote_attest=other, quote_signature=signature(tpm.ak, quote))


def test_a_bundle_of_two_structures_is_refused() -> None:
    tpm, expected = SoftTpm(MAKER), asked()
    certify = tpm.certify(expected.qualifying("certify"))
    refused(
        Reason.ATTEST_SIGNATURE,
        tpm,
        certify_attest=certify + certify,
        certify_signature=signature(tpm.ak, certify),
    )


def test_the_issued_key_is_the_certified_one() -> None:
    tpm, other = SoftTpm(MAKER), ec.generate_private_key(ec.SECP256R1())
    assert judge(tpm).tls_spki == Public.parse(tpm.tls_area, "tls").spki
    refused(Reason.CSR_KEY_MISMATCH, tpm, csr=request(other))


def test_the_credential_goes_to_the_ek_of_the_checked_certificate() -> None:
    """A good certificate beside another EK, and a good EK beside another good certificate."""
    trust, ours, theirs = MakerTrust(hardware=(MAKER.root,)), SoftTpm(MAKER), SoftTpm(MAKER)
    for begin in (ours.begin(ek_public=theirs.ek_area), ours.begin(ek_certificate=theirs.certificate)):
        with pytest.raises(Fault) as caught:
            identify(begin, trust, NOW)
        assert caught.value.reason is Reason.EK_MISMATCH
    assert identify(ours.begin(), trust, NOW).ek.raw == ours.ek_area


def test_a_leaf_is_judged_not_what_the_chain_brings() -> None:
    """An honest EK certificate in the chain does not vouch for a leaf that a stranger's maker signed."""
    trust, honest = MakerTrust(hardware=(MAKER.root,)), SoftTpm(MAKER)
    stranger = TpmMaker.create()
    rogue = SoftTpm(stranger)
    for chain in ((honest.certificate, *MAKER.chain), (*MAKER.chain, MAKER.root.public_bytes(Encoding.DER))):
        with pytest.raises(Fault) as caught:
            identify(rogue.begin(ek_chain=chain), trust, NOW)
        assert caught.value.reason is Reason.EK_CHAIN_UNTRUSTED


def test_parsed_values_hold_every_signed_octet() -> None:
    """Marshalling what was parsed gives the signed octets again: no octet escapes the checks."""
    tpm, expected = SoftTpm(MAKER), asked()
    for kind, raw in (
        (AttestType.CERTIFY, tpm.certify(expected.qualifying("certify"))),
        (AttestType.QUOTE, tpm.quote(expected.qualifying("quote"))),
    ):
        assert Attest.parse(raw, kind, "a").marshal() == raw
    public = Public.parse(tpm.tls_area, "p")
    assert public.marshal() == public.raw == tpm.tls_area
    assert public.name == name_of(public.name_hash, tpm.tls_area)


def test_a_parser_that_drops_what_it_read_does_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check of the above at run time: were a parser to lose or bend a field, it would refuse."""
    tpm = SoftTpm(MAKER)
    certify = tpm.certify(asked().qualifying("certify"))
    monkeypatch.setattr(attest, "_certified", lambda reader: replace(_read(reader), qualified_name=b""))
    with pytest.raises(Fault) as caught:
        Attest.parse(certify, AttestType.CERTIFY, "a")
    assert caught.value.reason is Reason.TPM_STRUCTURE_MALFORMED


def _read(reader: Any) -> Certified:
    return Certified(reader.sized(66), reader.sized(66))
