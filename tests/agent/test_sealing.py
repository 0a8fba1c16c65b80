"""What is sealed comes out of this TPM in this boot state, and of nothing else."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from agent.tpm import Tpm
from agent.tpm_values import MAX_SEALED_BYTES, SealedSecret
from foundation.faults import Fault
from foundation.reasons import Reason
from foundation.wire.enrolment import PcrSelection
from tests.support.swtpm import EmulatedTpm, TpmMaker, booted, maker, swtpm

__all__ = ["maker", "swtpm"]  # fixtures

PCRS = PcrSelection("sha256", tuple(range(8)))
SECRET = bytes(range(32))


def extend(device: EmulatedTpm, pcr: int) -> None:
    subprocess.run(["tpm2_pcrextend", "-T", device.tcti, f"{pcr}:sha256={'11' * 32}"], check=True)


def sealed_by(device: EmulatedTpm) -> SealedSecret:
    with Tpm(device.tcti) as tpm:
        return tpm.seal(PCRS, SECRET)


def refused(device: EmulatedTpm, sealed: SealedSecret) -> Reason:
    with Tpm(device.tcti) as tpm, pytest.raises(Fault) as caught:
        tpm.unseal(PCRS, sealed)
    return caught.value.reason


def test_it_comes_out_again_after_a_reboot(swtpm: EmulatedTpm) -> None:
    sealed = sealed_by(swtpm)
    swtpm.shut_down()
    swtpm.boot()
    with Tpm(swtpm.tcti) as tpm:
        assert tpm.unseal(PCRS, sealed) == SECRET


@pytest.mark.parametrize("pcr", [0, 4, 7])
def test_another_boot_state_does_not_open_it(swtpm: EmulatedTpm, pcr: int) -> None:
    sealed = sealed_by(swtpm)
    extend(swtpm, pcr)
    assert refused(swtpm, sealed) is Reason.BUNDLE_SEALED


def test_other_pcrs_than_the_sealed_ones_do_not_matter(swtpm: EmulatedTpm) -> None:
    sealed = sealed_by(swtpm)
    extend(swtpm, 14)
    with Tpm(swtpm.tcti) as tpm:
        assert tpm.unseal(PCRS, sealed) == SECRET


def test_another_tpm_does_not_open_it(swtpm: EmulatedTpm, maker: TpmMaker, tmp_path: Path) -> None:
    sealed = sealed_by(swtpm)
    with booted(tmp_path / "other", maker) as other:
        assert refused(other, sealed) is Reason.BUNDLE_SEALED


def test_no_password_opens_it(swtpm: EmulatedTpm, tmp_path: Path) -> None:
    """tpm2-tools, as the machine's root has them, with the empty password that the object bears."""
    sealed = sealed_by(swtpm)
    (tmp_path / "public").write_bytes(sealed.public)
    (tmp_path / "private").write_bytes(sealed.private)
    run = ("-T", swtpm.tcti)
    standard = ("-a", "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|restricted|decrypt|noda")
    created = ("tpm2_createprimary", *run, "-C", "o", "-G", "ecc256:aes128cfb", *standard, "-c", tmp_path / "parent")
    loading = ("tpm2_load", *run, "-C", tmp_path / "parent", "-u", tmp_path / "public", "-r", tmp_path / "private")
    for words in (created, ("tpm2_flushcontext", *run, "-t"), (*loading, "-c", tmp_path / "object")):
        subprocess.run(words, check=True, capture_output=True)
    subprocess.run(("tpm2_flushcontext", *run, "-t"), check=True)
    got = subprocess.run(("tpm2_unseal", *run, "-c", tmp_path / "object"), check=False, capture_output=True)
    assert (got.returncode != 0, got.stdout) == (True, b"")


@pytest.mark.parametrize("field", ["public", "private"])
def test_a_damaged_one_is_refused(swtpm: EmulatedTpm, field: str) -> None:
    sealed = sealed_by(swtpm)
    raw = bytearray(getattr(sealed, field))
    raw[-1] ^= 1
    assert refused(swtpm, replace(sealed, **{field: bytes(raw)})) is Reason.BUNDLE_SEALED


def test_a_bank_that_is_not_active_seals_nothing(swtpm: EmulatedTpm) -> None:
    with Tpm(swtpm.tcti) as tpm, pytest.raises(Fault) as caught:
        tpm.seal(PcrSelection("sha3_256", (0,)), SECRET)
    assert caught.value.reason in {Reason.QUOTE_SELECTION, Reason.TPM_UNAVAILABLE}


def test_as_much_as_a_tpm_seals(swtpm: EmulatedTpm) -> None:
    with Tpm(swtpm.tcti) as tpm:
        assert tpm.unseal(PCRS, tpm.seal(PCRS, bytes(MAX_SEALED_BYTES))) == bytes(MAX_SEALED_BYTES)


def test_sealing_leaves_nothing_loaded(swtpm: EmulatedTpm) -> None:
    with Tpm(swtpm.tcti) as tpm:
        for _ in range(6):
            tpm.unseal(PCRS, tpm.seal(PCRS, SECRET))
        assert tpm.create_tls_key().public
