"""MakeCredential against the TPM that has to free the secret, leading zeros included; KDFs against their formulas."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from tpm2_pytss import ESAPI
from tpm2_pytss.constants import ESYS_TR
from tpm2_pytss.types import TPM2B_ENCRYPTED_SECRET, TPM2B_ID_OBJECT
from tpm2_pytss.utils import NVReadEK, create_ek_template

from agent import tpm_commands
from pki.tpm.algorithms import SHA256, SHA384, Hash
from pki.tpm.credential import ENTROPY_BYTES, Credential, kdf_a, kdf_e, make_credential
from pki.tpm.public import EccKey, Public
from tests.support import soft_tpm
from tests.support.recorded import TEMPLATES, Recording, recording, recordings  # noqa: F401  # fixtures
from tests.support.swtpm import maker  # noqa: F401  # fixture

ACTIVATIONS = 120


def entropy(n: int) -> bytes:
    return hashlib.sha512(b"entropy %d" % n).digest()


class Device:
    """A TPM with EK and AK loaded."""

    def __init__(self, esapi: ESAPI, template: str, ek: Any, ak: Any) -> None:
        self.esapi, self.template, self.ek, self.ak = esapi, template, ek, ak

    def activate(self, credential: Credential) -> bytes:
        blob = TPM2B_ID_OBJECT(credential.credential_blob[2:])
        secret = TPM2B_ENCRYPTED_SECRET(credential.encrypted_secret[2:])
        with tpm_commands._ek_session(self.esapi, self.template) as session:
            return bytes(self.esapi.activate_credential(self.ak, self.ek, blob, secret, session2=session))


@contextlib.contextmanager
def opened(found: Recording) -> Iterator[Device]:
    with found.device.esapi() as esapi:
        _, area = create_ek_template(found.template, NVReadEK(esapi))
        with (
            tpm_commands._primary(esapi, area, ESYS_TR.ENDORSEMENT) as (ek, _),
            tpm_commands._primary(esapi, tpm_commands._ak_template(), ESYS_TR.ENDORSEMENT) as (ak, _),
        ):
            yield Device(esapi, found.template, ek, ak)


def test_the_tpm_frees_every_secret(recording: Recording) -> None:  # noqa: F811
    ek, ak = Public.parse(recording.begin.ek_public, "ek"), Public.parse(recording.begin.ak_public, "ak")
    with opened(recording) as device:
        for n in range(ACTIVATIONS):
            secret = entropy(n)[: 1 + n % ek.name_hash.size]
            assert device.activate(make_credential(ek, ak.name, secret, entropy(n))) == secret


@pytest.mark.parametrize("template", ["EK-ECC256", "EK-HIGH-ECC384"])
def test_leading_zeros_count(recordings: dict[str, Recording], template: str) -> None:  # noqa: F811
    """An ephemeral point or a shared secret whose coordinate begins with a zero octet: one in 256 does."""
    found = recordings[template]
    ek, ak = Public.parse(found.begin.ek_public, "ek"), Public.parse(found.begin.ak_public, "ak")
    assert isinstance(ek.key, EccKey)
    size = ek.key.curve.size
    wanted = {"x", "y"}
    with opened(found) as device:
        for n in range(100_000):
            credential = make_credential(ek, ak.name, b"secret", entropy(n))
            zeros = {"x"} if credential.encrypted_secret[4] == 0 else set()
            zeros |= {"y"} if credential.encrypted_secret[6 + size] == 0 else set()
            if zeros & wanted:
                assert device.activate(credential) == b"secret"
                wanted -= zeros
            if not wanted:
                return
    pytest.fail("no leading zero in 100,000 points")


def test_tpm2_activatecredential_frees_it(recordings: dict[str, Recording], tmp_path: Path) -> None:  # noqa: F811
    """tpm2-tools' own file form: a magic, a version, then both structures."""
    found = recordings["EK-RSA2048"]
    run = _runner(found.device.tcti, tmp_path)
    run("tpm2_createek", "-c", "ek.ctx", "-G", "rsa", "-u", "ek.pub")
    run("tpm2_flushcontext", "-t")
    run("tpm2_createak", "-C", "ek.ctx", "-c", "ak.ctx", "-G", "ecc", "-g", "sha256", "-s", "ecdsa", "-n", "ak.name")
    for kind in ("-t", "-l", "-s"):
        run("tpm2_flushcontext", kind)
    ek = Public.parse((tmp_path / "ek.pub").read_bytes()[2:], "ek")
    assert ek.raw == found.begin.ek_public
    credential = make_credential(ek, (tmp_path / "ak.name").read_bytes(), b"a secret", entropy(0))
    (tmp_path / "blob").write_bytes(b"\xba\xdc\xc0\xde\x00\x00\x00\x01" + b"".join(credential))
    run("tpm2_startauthsession", "--policy-session", "-S", "session")
    run("tpm2_policysecret", "-S", "session", "-c", "e")
    run("tpm2_activatecredential", "-c", "ak.ctx", "-C", "ek.ctx", "-i", "blob", "-o", "freed", "-P", "session:session")
    assert (tmp_path / "freed").read_bytes() == b"a secret"
    for kind in ("-t", "-l", "-s"):
        run("tpm2_flushcontext", kind)


@pytest.mark.parametrize("digest", [SHA256, SHA384])
@pytest.mark.parametrize("bits", [128, 256, 384, 1024])
def test_kdfs_follow_their_formulas(digest: Hash, bits: int) -> None:
    """TPM 2.0 Part 1 §11.4.10.2 eq. 6 and §11.4.10.3 eq. 9, written out."""
    counters = [n.to_bytes(4, "big") for n in range(1, 6)]
    fixed = b"STORAGE\x00" + b"u" * 34 + bits.to_bytes(4, "big")
    stream = b"".join(hmac.digest(b"key", counter + fixed, digest.name) for counter in counters)
    assert kdf_a(digest, b"key", b"STORAGE", b"u" * 34, bits) == stream[: bits // 8]
    joined = b"z" * 32 + b"IDENTITY\x00" + b"u" * 32 + b"v" * 32
    stream = b"".join(hashlib.new(digest.name, counter + joined).digest() for counter in counters)
    assert kdf_e(digest, b"z" * 32, b"IDENTITY", b"u" * 32, b"v" * 32, bits) == stream[: bits // 8]


def test_misuse_is_an_error() -> None:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    signing = Public.parse(soft_tpm.public_area(key, soft_tpm.AK), "p")
    storage = soft_tpm.public_area(key, soft_tpm.EK_LOW, policy=soft_tpm.POLICY_A, aes=128, scheme=soft_tpm.NULL)
    ek, fresh = Public.parse(storage, "p"), bytes(ENTROPY_BYTES)
    for arguments in ((signing, b"n", b"s", fresh), (ek, b"n", b"", fresh), (ek, b"n", bytes(33), fresh)):
        with pytest.raises(ValueError, match="wrong size"):
            make_credential(*arguments)
    with pytest.raises(ValueError, match="wrong size"):
        make_credential(ek, b"n", b"s", fresh[1:])


def _runner(tcti: str, folder: Path) -> Any:
    def run(*command: str) -> None:
        subprocess.run([*command, "-T", tcti], cwd=folder, check=True, capture_output=True)

    return run
