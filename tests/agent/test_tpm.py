"""The TPM's worker, with tpm2-tools as second opinion on what it makes."""

from __future__ import annotations

import hashlib
import subprocess
import threading
from pathlib import Path

import pytest
from tpm2_pytss.constants import ESYS_TR
from tpm2_pytss.types import TPM2B_PUBLIC, TPMS_ATTEST, TPMT_PUBLIC
from tpm2_pytss.utils import make_credential

from agent.tpm import Tpm
from agent.tpm_commands import _der_values
from foundation.faults import Fault
from foundation.reasons import Reason
from foundation.wire.enrolment import PcrSelection
from tests.support.swtpm import (
    CERTIFICATE_INDEX,
    CHAIN_INDEX,
    EmulatedTpm,
    TpmMaker,
    booted,
    erase_nv,
    maker,
    swtpm,
    write_nv,
)

__all__ = ["maker", "swtpm"]  # fixtures

_QUALIFYING = hashlib.sha256(b"qualifying").digest()
_TPM_CC_SIGN = 0x15D


def run(*words: object) -> str:
    return subprocess.run([str(word) for word in words], check=True, capture_output=True, text=True).stdout


def public(area: bytes) -> TPM2B_PUBLIC:
    return TPM2B_PUBLIC(publicArea=TPMT_PUBLIC.unmarshal(area)[0])


def test_the_ak_is_the_same_after_a_reboot(swtpm: EmulatedTpm) -> None:
    with Tpm(swtpm.tcti) as tpm:
        first = tpm.attestation_key()
    swtpm.shut_down()
    swtpm.boot()
    with Tpm(swtpm.tcti) as tpm:
        assert tpm.attestation_key() == first


def test_tpm2_tools_read_the_keys_as_they_were_meant(swtpm: EmulatedTpm, tmp_path: Path) -> None:
    with Tpm(swtpm.tcti) as tpm:
        areas = {"ak": tpm.attestation_key(), "tls": tpm.create_tls_key().public}
    printed = {}
    for name, area in areas.items():
        path = tmp_path / name
        path.write_bytes(len(area).to_bytes(2, "big") + area)
        printed[name] = run("tpm2_print", "-t", "TPM2B_PUBLIC", path)
    of_this_tpm = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda"
    assert f"value: {of_this_tpm}|restricted|sign\n" in printed["ak"]
    assert f"value: {of_this_tpm}|sign\n" in printed["tls"]
    assert all("curve-id:\n  value: NIST p256" in text for text in printed.values())


def test_tpm2_checkquote_accepts_the_quote(swtpm: EmulatedTpm, tmp_path: Path) -> None:
    with Tpm(swtpm.tcti) as tpm:
        area = tpm.attestation_key()
        quoted, values = tpm.quote(PcrSelection("sha256", tuple(range(10))), _QUALIFYING)
    (tmp_path / "ak.pem").write_bytes(public(area).to_pem())
    (tmp_path / "attest").write_bytes(quoted.attest)
    (tmp_path / "signature").write_bytes(quoted.signature)
    run(
        *("tpm2_checkquote", "-u", tmp_path / "ak.pem", "-m", tmp_path / "attest", "-s", tmp_path / "signature"),
        *("-q", _QUALIFYING.hex()),
    )
    assert len(values) == 10
    printed = run("tpm2_print", "-t", "TPMS_ATTEST", tmp_path / "attest")
    assert hashlib.sha256(b"".join(values)).hexdigest() in printed
    read = run("tpm2_pcrread", "-T", swtpm.tcti, "sha256:0,7,9")
    assert all(values[i].hex().upper() in read for i in (0, 7, 9))


def test_the_certified_name_is_the_tls_keys(swtpm: EmulatedTpm) -> None:
    with Tpm(swtpm.tcti) as tpm:
        key = tpm.create_tls_key()
        certified = tpm.certify(key, _QUALIFYING)
    attest, size = TPMS_ATTEST.unmarshal(certified.attest)
    attested = attest.attested
    certify = attested.certify
    assert size == len(certified.attest)
    assert bytes(certify.name) == b"\x00\x0b" + hashlib.sha256(key.public).digest()


@pytest.mark.parametrize("ek", sorted(CERTIFICATE_INDEX))
def test_a_credential_for_ek_and_ak_is_activated(ek: str, tmp_path: Path, maker: TpmMaker) -> None:
    with booted(tmp_path / "tpm", maker, ek) as device, Tpm(device.tcti) as tpm:
        endorsement, ak = tpm.endorsement_key(), tpm.attestation_key()
        assert endorsement.template == ek
        blob, secret = make_credential(public(endorsement.public), b"s" * 32, public(ak).get_name())
        assert tpm.activate(ek, blob.marshal(), secret.marshal()) == b"s" * 32


def test_a_credential_for_another_ak_is_not_activated(swtpm: EmulatedTpm) -> None:
    with Tpm(swtpm.tcti) as tpm:
        endorsement, other = tpm.endorsement_key(), tpm.create_tls_key()
        blob, secret = make_credential(public(endorsement.public), b"s" * 32, public(other.public).get_name())
        with pytest.raises(Fault) as caught:
            tpm.activate(endorsement.template, blob.marshal(), secret.marshal())
        assert caught.value.reason is Reason.TPM_UNAVAILABLE
        tpm.attestation_key()  # nothing was left loaded, and the session is gone


@pytest.mark.parametrize("blob", [b"", b"\x00", b"\x00\x02a", b"\x00\x01ab"])
def test_a_credential_that_is_not_one_structure_is_named(swtpm: EmulatedTpm, blob: bytes) -> None:
    with Tpm(swtpm.tcti) as tpm, pytest.raises(Fault) as caught:
        tpm.activate("EK-ECC256", blob, b"\x00\x00")
    assert caught.value.reason is Reason.TPM_STRUCTURE_MALFORMED
    assert caught.value.field == "credential_blob"


def test_a_padded_certificate_and_a_split_chain_are_read_as_der(
    swtpm: EmulatedTpm, tmp_path: Path, maker: TpmMaker
) -> None:
    with Tpm(swtpm.tcti) as tpm:
        expected = tpm.endorsement_key()
    chain = maker.chain[0] * 2
    with swtpm.esapi() as esapi:
        for index in (CERTIFICATE_INDEX["EK-ECC256"], CHAIN_INDEX):
            erase_nv(esapi, index)
        write_nv(esapi, CERTIFICATE_INDEX["EK-ECC256"], expected.certificate + b"\xff" * 40)
        write_nv(esapi, CHAIN_INDEX, chain[:600])
        write_nv(esapi, CHAIN_INDEX + 1, chain[600:] + bytes(30))
    with Tpm(swtpm.tcti) as tpm:
        found = tpm.endorsement_key()
    assert found.certificate == expected.certificate
    assert found.chain == maker.chain * 2


def test_no_certificate_in_nv_is_named(swtpm: EmulatedTpm) -> None:
    with swtpm.esapi() as esapi:
        erase_nv(esapi, CERTIFICATE_INDEX["EK-ECC256"])
    with Tpm(swtpm.tcti) as tpm, pytest.raises(Fault, match="ek_certificate_missing"):
        tpm.endorsement_key()


@pytest.mark.parametrize("raw", [b"", b"\x30", b"\x30\x82\x00", b"\x30\x82\x00\x05abcd", b"\xff" * 9])
def test_what_is_no_der_certificate_is_none(raw: bytes) -> None:
    assert _der_values(raw) == ()


def test_leftovers_of_a_crashed_predecessor_are_flushed(swtpm: EmulatedTpm) -> None:
    with swtpm.esapi() as esapi:
        for _ in range(3):  # all the places there are
            esapi.create_primary(None, "ecc256", ESYS_TR.OWNER)
    with Tpm(swtpm.tcti) as tpm:
        key = tpm.create_tls_key()
        assert tpm.sign(key, _QUALIFYING)


def test_many_threads_share_it(swtpm: EmulatedTpm) -> None:
    answers: list[bytes] = []
    with Tpm(swtpm.tcti) as tpm:
        key = tpm.create_tls_key()

        def work() -> None:
            for _ in range(5):
                answers.append(tpm.sign(key, _QUALIFYING))
                answers.append(tpm.certify(key, _QUALIFYING).attest)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(answers) == 80


def test_signing_goes_on_after_the_tpm_was_reset(swtpm: EmulatedTpm) -> None:
    with Tpm(swtpm.tcti) as tpm:
        key = tpm.create_tls_key()
        tpm.sign(key, _QUALIFYING)
        swtpm.power_off()
        swtpm.boot()
        assert tpm.sign(key, _QUALIFYING)
        before = swtpm.command_codes().count(_TPM_CC_SIGN)
        assert tpm.sign(key, _QUALIFYING)
        assert swtpm.command_codes().count(_TPM_CC_SIGN) == before + 1


def test_a_tpm_that_went_away_is_named(swtpm: EmulatedTpm) -> None:
    with Tpm(swtpm.tcti) as tpm:
        key = tpm.create_tls_key()
        swtpm.power_off()
        for _ in range(2):
            with pytest.raises(Fault) as caught:
                tpm.sign(key, _QUALIFYING)
            assert caught.value.reason is Reason.TPM_UNAVAILABLE
        with pytest.raises(Fault, match="tpm_unavailable"):
            tpm.attestation_key()
        swtpm.boot()
        assert tpm.attestation_key()


def test_another_tpms_key_is_named(swtpm: EmulatedTpm, tmp_path: Path, maker: TpmMaker) -> None:
    with Tpm(swtpm.tcti) as tpm:
        key = tpm.create_tls_key()
    with booted(tmp_path / "other", maker) as other, Tpm(other.tcti) as tpm, pytest.raises(Fault) as caught:
        tpm.sign(key, _QUALIFYING)
    assert caught.value.reason is Reason.TLS_KEY_UNUSABLE


def test_a_closed_tpm_refuses(swtpm: EmulatedTpm) -> None:
    tpm = Tpm(swtpm.tcti)
    tpm.close()
    tpm.close()
    with pytest.raises(Fault, match="closed"):
        tpm.attestation_key()


@pytest.mark.parametrize("pem", [b"", b"-----BEGIN TSS2 PRIVATE KEY-----\nAAAA\n-----END TSS2 PRIVATE KEY-----\n"])
def test_a_damaged_key_file_is_named(swtpm: EmulatedTpm, pem: bytes) -> None:
    with Tpm(swtpm.tcti) as tpm, pytest.raises(Fault) as caught:
        tpm.read_tls_key(pem)
    assert caught.value.reason is Reason.TLS_KEY_UNUSABLE
