"""Attack: a virtual TPM passed off as hardware (defguard#3359).

An emulator's root gives the class `virtual`, never `hardware`, whatever the certificate says of its maker; a settings
file that calls one root both is refused.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from deploy.demo.tpm_maker import TpmMaker
from foundation.faults import Fault
from foundation.identity import AttestationClass
from foundation.reasons import Reason
from pki.tpm.endorsement import MakerTrust
from pki.tpm.verdict import identify
from tests.support.authorities import authority, named
from tests.support.recorded import Recording, recording, recordings  # noqa: F401  # fixtures
from tests.support.soft_tpm import NOW, SoftTpm
from tests.support.swtpm import maker  # noqa: F401  # fixture

HARDWARE = TpmMaker.create("Hardware TPM Maker", manufacturer="id:49465800", model="SLB9670", version="id:00070055")
EMULATOR = replace(TpmMaker.create("Emulator"), manufacturer=HARDWARE.manufacturer, model=HARDWARE.model)
TRUST = MakerTrust(hardware=(HARDWARE.root,), virtual=(EMULATOR.root,))


def test_an_emulators_root_gives_virtual_whatever_its_certificates_say() -> None:
    found = identify(SoftTpm(EMULATOR).begin(), TRUST, NOW)
    assert (found.maker, found.model) == (HARDWARE.manufacturer, HARDWARE.model)
    assert found.attestation is AttestationClass.VIRTUAL
    assert identify(SoftTpm(HARDWARE).begin(), TRUST, NOW).attestation is AttestationClass.HARDWARE


def test_hardware_certificates_in_the_chain_do_not_help() -> None:
    chain = (*EMULATOR.chain, *HARDWARE.chain)
    for order in (chain, chain[::-1]):
        assert identify(SoftTpm(EMULATOR).begin(ek_chain=order), TRUST, NOW).attestation is AttestationClass.VIRTUAL


def test_a_cross_signed_emulator_stays_virtual() -> None:
    """Where a path to both kinds of root exists, the weaker claim is the true one."""
    root, cross = _careless_maker()
    begin = SoftTpm(EMULATOR).begin(ek_chain=(*EMULATOR.chain, cross))
    assert identify(begin, MakerTrust((root,), (EMULATOR.root,)), NOW).attestation is AttestationClass.VIRTUAL
    assert identify(begin, MakerTrust((root,)), NOW).attestation is AttestationClass.HARDWARE  # so the path is good


def test_an_emulators_root_that_is_not_pinned_is_nothing() -> None:
    with pytest.raises(Fault) as caught:
        identify(SoftTpm(EMULATOR).begin(), MakerTrust(hardware=(HARDWARE.root,)), NOW)
    assert caught.value.reason is Reason.EK_CHAIN_UNTRUSTED


def test_one_root_is_not_of_both_classes() -> None:
    with pytest.raises(Fault) as caught:
        MakerTrust(hardware=(HARDWARE.root, EMULATOR.root), virtual=(EMULATOR.root,))
    assert caught.value.reason is Reason.SETTING_INVALID


def test_a_real_emulator_is_virtual(recording: Recording) -> None:  # noqa: F811
    trust = MakerTrust(hardware=(HARDWARE.root,), virtual=(recording.maker.root,))
    assert identify(recording.begin, trust, NOW).attestation is AttestationClass.VIRTUAL


def _careless_maker() -> tuple[x509.Certificate, bytes]:
    """A hardware maker's root, and the emulator's intermediate once more, signed by that root."""
    key, name = ec.generate_private_key(ec.SECP256R1()), named("Careless Maker")
    root = authority(name, key.public_key(), name, key)
    cross = authority(EMULATOR.intermediate.subject, EMULATOR.intermediate_key.public_key(), name, key)
    return root, cross.public_bytes(Encoding.DER)
