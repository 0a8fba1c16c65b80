"""What a real emulator said, once a session: bytes to hold the verdict and its parsers against."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent.tlskey import TpmTlsKey, create_csr
from agent.tpm import Tpm
from deploy.demo.emulated_tpm import EmulatedTpm
from deploy.demo.tpm_maker import TpmMaker
from foundation.wire.enrolment import Begin, Evidence, PcrSelection
from pki.tpm.verdict import Expected
from tests.support.swtpm import booted

TEMPLATES = ("EK-ECC256", "EK-RSA2048", "EK-HIGH-ECC384")


@dataclass(frozen=True)
class Recording:
    """An honest enrolment. The device still runs."""

    template: str
    maker: TpmMaker
    device: EmulatedTpm
    begin: Begin
    expected: Expected
    evidence: Evidence


def record(device: EmulatedTpm, maker: TpmMaker, template: str, pcrs: PcrSelection) -> Recording:
    """One enrolment by the agent's own commands."""
    with Tpm(device.tcti) as tpm:
        endorsement, key = tpm.endorsement_key(template), tpm.create_tls_key()
        names = (endorsement.certificate, endorsement.chain, endorsement.public, tpm.attestation_key(), key.public)
        begin = Begin("enrol", "tpm", "node-1", "", *names)
        session, nonce, server = (secrets.token_bytes(size) for size in (16, 32, 32))
        expected = Expected("enrol", session, nonce, begin.encode(), server, pcrs)
        certify = tpm.certify(key, expected.qualifying("certify"))
        quote, values = tpm.quote(pcrs, expected.qualifying("quote"))
        parts = (certify.attest, certify.signature, quote.attest, quote.signature, values)
        evidence = Evidence(*parts, device.event_log.read_bytes(), create_csr(TpmTlsKey(tpm, key)))
    return Recording(template, maker, device, begin, expected, evidence)


@pytest.fixture(scope="session", name="recordings")
def recordings(tmp_path_factory: pytest.TempPathFactory, maker: TpmMaker) -> Iterator[dict[str, Recording]]:
    """A recording for each EK template; PCRs 0 to 7 of the sha256 bank."""
    folder: Path = tmp_path_factory.mktemp("recordings")
    pcrs = PcrSelection("sha256", tuple(range(8)))
    with contextlib.ExitStack() as stack:
        devices = {name: stack.enter_context(booted(folder / name, maker, name)) for name in TEMPLATES}
        yield {name: record(device, maker, name, pcrs) for name, device in devices.items()}


@pytest.fixture(name="recording", params=TEMPLATES)
def recording(request: pytest.FixtureRequest, recordings: dict[str, Recording]) -> Recording:
    """Each recording in turn."""
    found: Recording = recordings[request.param]
    return found
