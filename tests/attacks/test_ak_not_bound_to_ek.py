"""Attack: AK not bound to EK.

A credential is made for one EK and one AK. It is relayed to another TPM, and to another key of the same TPM: neither
frees the secret. Real emulators refuse, not a model of them.
"""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from agent.tpm import Tpm
from deploy.demo.tpm_maker import TpmMaker
from foundation.faults import Fault
from foundation.reasons import Reason
from pki.tpm.credential import ENTROPY_BYTES, Credential, make_credential
from pki.tpm.public import Public, name_of
from tests.support.swtpm import booted, maker  # noqa: F401  # fixture

TEMPLATE = "EK-ECC256"


def credential_for(ek: bytes, ak_name: bytes, secret: bytes) -> Credential:
    return make_credential(Public.parse(ek, "ek"), ak_name, secret, secrets.token_bytes(ENTROPY_BYTES))


def test_only_the_tpm_of_both_keys_frees_the_secret(tmp_path: Path, maker: TpmMaker) -> None:  # noqa: F811
    secret = secrets.token_bytes(32)
    with (
        booted(tmp_path / "ours", maker, TEMPLATE) as ours,
        booted(tmp_path / "theirs", maker, TEMPLATE) as theirs,
        Tpm(ours.tcti) as tpm,
        Tpm(theirs.tcti) as thief,
    ):
        ek, ak, their_ak = tpm.endorsement_key(TEMPLATE).public, tpm.attestation_key(), thief.attestation_key()
        name, their_name = Public.parse(ak, "ak").name, Public.parse(their_ak, "ak").name
        honest = credential_for(ek, name, secret)
        assert tpm.activate(TEMPLATE, *honest) == secret
        # The credential is relayed to another TPM, which holds neither key.
        _refused(thief, honest)
        # A stolen EK certificate with the thief's own AK: the TPM of the EK refuses an AK that it does not hold, and
        # the thief's TPM the EK that it does not hold.
        mixed = credential_for(ek, their_name, secret)
        _refused(tpm, mixed)
        _refused(thief, mixed)
        # The Name counts with its hash algorithm and all attributes.
        bent = bytearray(ak)
        bent[7] ^= 0x40  # userWithAuth
        _refused(tpm, credential_for(ek, name_of(Public.parse(ak, "ak").name_hash, bytes(bent)), secret))


def test_a_bent_credential_frees_nothing(tmp_path: Path, maker: TpmMaker) -> None:  # noqa: F811
    with booted(tmp_path / "ours", maker, TEMPLATE) as ours, Tpm(ours.tcti) as tpm:
        ek, ak = tpm.endorsement_key(TEMPLATE).public, tpm.attestation_key()
        honest = credential_for(ek, Public.parse(ak, "ak").name, secrets.token_bytes(32))
        for i in (4, 40, len(honest.credential_blob) - 1):  # the HMAC, the encrypted secret
            blob = bytearray(honest.credential_blob)
            blob[i] ^= 1
            _refused(tpm, Credential(bytes(blob), honest.encrypted_secret))


def _refused(tpm: Tpm, credential: Credential) -> None:
    with pytest.raises(Fault) as caught:
        tpm.activate(TEMPLATE, *credential)
    assert caught.value.reason is Reason.TPM_UNAVAILABLE
