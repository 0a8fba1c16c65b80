"""A node's TPM 2.0, emulated by swtpm: manufactured with an EK certificate, booted with measurements.

For demonstrations and tests; nothing that ships imports it. A device is a state folder; starting swtpm on an empty one
makes fresh seeds. swtpm serves one connection at a time: whoever holds an ESAPI context open keeps all others waiting.
"""

from __future__ import annotations

import contextlib
import random
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding, load_der_public_key
from tpm2_pytss import ESAPI, TSS2_Exception
from tpm2_pytss.constants import ESYS_TR, TPM2_ALG, TPM2_SU, TPMA_NV
from tpm2_pytss.types import TPM2B_NV_PUBLIC, TPML_DIGEST_VALUES, TPMS_NV_PUBLIC, TPMT_HA, TPMU_HA
from tpm2_pytss.utils import NoSuchIndex, create_ek_template

from deploy.demo.measured_boot import ALGORITHMS, Measurement, event_log, healthy_boot
from deploy.demo.tpm_maker import TpmMaker

CERTIFICATE_INDEX = {"EK-ECC256": 0x01C0000A, "EK-RSA2048": 0x01C00002, "EK-HIGH-ECC384": 0x01C00016}
CHAIN_INDEX = 0x01C00100  # EK Credential Profile v2.6 §2.2.1.4: EK certificate chains lie from here
_ALL_BANKS = tuple(ALGORITHMS)
_READY_SECONDS = 10.0
# A command's header is tag, size and code (TPM 2.0 Part 1 §18): the code is its bytes 6 to 9.
_LOGGED_COMMAND = re.compile(r"SWTPM_IO_Read: length \d+\s+(?:[0-9A-F]{2} ){6}((?:[0-9A-F]{2} ){4})")
# Below the range that kernels hand out for outgoing connections, so that none of those takes our pair.
_PORTS = range(20000, 32000, 2)
_CERTIFICATE_ATTRIBUTES = (
    TPMA_NV.PPWRITE | TPMA_NV.PPREAD | TPMA_NV.OWNERREAD | TPMA_NV.AUTHREAD | TPMA_NV.NO_DA | TPMA_NV.PLATFORMCREATE
)


class EmulatedTpm:
    """One device. `boot` starts it and measures; `shut_down` ends it in an orderly way. Usable as a context manager,
    which boots it with a healthy firmware."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.event_log = folder / "binary_bios_measurements"
        self.command_log = folder / "swtpm.log"
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def tcti(self) -> str:
        """Where the agent, pytss and tpm2-tools (`-T`) find it."""
        return f"swtpm:host=127.0.0.1,port={self._port}"

    def boot(self, events: tuple[Measurement, ...] | None = None) -> None:
        """Power on; extend `events` (a healthy boot's by default) into every active bank and write their log."""
        self.power_on()
        events = healthy_boot() if events is None else events
        with self.esapi() as esapi:
            banks = _active_banks(esapi)
            for event in events:
                _extend(esapi, event, banks)
        self.event_log.write_bytes(event_log(events, banks))

    def power_on(self) -> None:
        """Start swtpm and wait until it answers; TPM2_Startup(CLEAR) is done by it."""
        self.state.mkdir(parents=True, exist_ok=True)
        for _ in range(20):
            # The port survives a restart where it can, so that an agent's configuration keeps pointing at it.
            self._port = self._port or _free_pair()
            self._process = self._start()
            if self._wait_ready(self._process):
                return
            self._port = 0
        raise RuntimeError(f"swtpm does not start; see {self.command_log}")

    def shut_down(self) -> None:
        """TPM2_Shutdown, then power off: the orderly way, after which `clock` is safe."""
        with self.esapi() as esapi:
            esapi.shutdown(TPM2_SU.CLEAR)
        self.power_off()

    def power_off(self) -> None:
        """Pull the plug: no TPM2_Shutdown."""
        if self._process:
            self._process.terminate()
            self._process.wait()
            self._process = None

    def clone(self, folder: Path) -> EmulatedTpm:
        """A device with a copy of this one's state, as a thief of a virtual machine's disk has it. Shut down first."""
        if self._process:
            raise RuntimeError("shut the device down before it is cloned")
        shutil.copytree(self.state, folder / "state")
        return EmulatedTpm(folder)

    @contextlib.contextmanager
    def esapi(self) -> Iterator[ESAPI]:
        """A context for this device; others wait meanwhile. It does not flush what the caller leaves behind."""
        with ESAPI(self.tcti) as esapi:
            yield esapi

    def command_codes(self) -> list[int]:
        """The TPM_CC of every command that reached this TPM since it was powered on, from swtpm's own log. The first
        use of an algorithm is answered with TPM_RC_TESTING and sent again by the TSS: it stands twice."""
        log = self.command_log.read_text(errors="replace")
        return [int(match[1].replace(" ", ""), 16) for match in _LOGGED_COMMAND.finditer(log)]

    def __enter__(self) -> EmulatedTpm:
        try:
            self.boot()
        except BaseException:
            self.power_off()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.power_off()

    def _start(self) -> subprocess.Popen[bytes]:
        command = (
            "swtpm socket --tpm2 --flags not-need-init,startup-clear"
            f" --server type=tcp,port={self._port} --ctrl type=tcp,port={self._port + 1}"
        ).split()
        command += ["--tpmstate", f"dir={self.state}", "--log", f"file={self.command_log},level=3,truncate"]
        # All words are ours, and there is no shell.
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def _wait_ready(self, process: subprocess.Popen[bytes]) -> bool:
        """Both ports are looked at and not tried: a connection to the command port would take the one place there is,
        and the control port opens first."""
        end = time.monotonic() + _READY_SECONDS
        while process.poll() is None and time.monotonic() < end:
            if {self._port, self._port + 1} <= _listening_ports():
                return True
            time.sleep(0.002)
        process.kill()
        process.wait()
        return False


def manufacture(folder: Path, maker: TpmMaker, ek: str = "EK-ECC256") -> EmulatedTpm:
    """A new device, powered off: EK made by the template `ek` (a key of `CERTIFICATE_INDEX`), its certificate and the
    maker's intermediate written to NV with platform authorisation."""
    device = EmulatedTpm(folder)
    device.power_on()
    try:
        with device.esapi() as esapi:
            key = load_der_public_key(_ek_public_der(esapi, ek))
            certificate = maker.certify_ek(key).public_bytes(Encoding.DER)  # type: ignore[arg-type]  # RSA or EC here
            write_nv(esapi, CERTIFICATE_INDEX[ek], certificate)
            write_nv(esapi, CHAIN_INDEX, maker.chain[0])
        device.shut_down()
    finally:
        device.power_off()
    return device


def set_up_by_swtpm(folder: Path) -> tuple[EmulatedTpm, tuple[bytes, bytes]]:
    """A device made by `swtpm_setup` and `swtpm_localca`, powered off, with the PEM of its root and its issuer. It has
    RSA-2048 (L-1) and P-384 (H-3) EK certificates, the sha256 bank alone, and no chain in NV."""
    device, authority = EmulatedTpm(folder), folder / "localca"
    device.state.mkdir(parents=True)
    authority.mkdir()
    names = ("signkey.pem", "issuercert.pem", "certserial")
    paths = dict(zip(("signingkey", "issuercert", "certserial"), (authority / name for name in names), strict=True))
    _write_settings(folder / "localca.conf", {"statedir": authority, **paths})
    (folder / "localca.options").write_text(
        "--platform-manufacturer Emulated\n--platform-version 1\n--platform-model 1\n"
    )
    _write_settings(
        folder / "setup.conf",
        {
            "create_certs_tool": shutil.which("swtpm_localca") or "swtpm_localca",
            "create_certs_tool_config": folder / "localca.conf",
            "create_certs_tool_options": folder / "localca.options",
            "active_pcr_banks": "sha256",
        },
    )
    command = ["swtpm_setup", "--tpm2", "--create-ek-cert", "--ecc", "--overwrite", "--pcr-banks", "sha256"]
    command += ["--tpm-state", str(device.state), "--config", str(folder / "setup.conf")]
    subprocess.run(command, check=True, capture_output=True)  # all words are ours, and there is no shell
    root = (authority / "swtpm-localca-rootca-cert.pem").read_bytes()
    return device, (root, (authority / "issuercert.pem").read_bytes())


def write_nv(esapi: ESAPI, index: int, data: bytes, padding: int = 0) -> None:
    """Define `index` as a maker does and write `data`, leaving `padding` unwritten bytes behind it."""
    space = TPMS_NV_PUBLIC(
        nvIndex=index,
        nameAlg=TPM2_ALG.SHA256,
        attributes=_CERTIFICATE_ATTRIBUTES,
        authPolicy=b"",
        dataSize=len(data) + padding,
    )
    handle = esapi.nv_define_space(None, TPM2B_NV_PUBLIC(nvPublic=space), auth_handle=ESYS_TR.PLATFORM)
    for offset in range(0, len(data), 512):
        esapi.nv_write(handle, data[offset : offset + 512], offset, auth_handle=ESYS_TR.PLATFORM)
    esapi.tr_close(handle)


def erase_nv(esapi: ESAPI, index: int) -> None:
    """Remove an index that `write_nv` defined."""
    with contextlib.suppress(TSS2_Exception):
        esapi.nv_undefine_space(esapi.tr_from_tpmpublic(index), auth_handle=ESYS_TR.PLATFORM)


def _write_settings(path: Path, settings: dict[str, object]) -> None:
    path.write_text("".join(f"{name} = {value}\n" for name, value in settings.items()))


def _ek_public_der(esapi: ESAPI, ek: str) -> bytes:
    def read_nv(index: int) -> bytes:
        if index == CERTIFICATE_INDEX[ek]:
            return b"not there yet"
        raise NoSuchIndex(index)

    _, template = create_ek_template(ek, read_nv)
    handle, public, *_rest = esapi.create_primary(None, template, ESYS_TR.ENDORSEMENT)
    try:
        return bytes(public.to_der())
    finally:
        esapi.flush_context(handle)


def _active_banks(esapi: ESAPI) -> tuple[str, ...]:
    """The banks that hold PCR 0."""
    return tuple(bank for bank in _ALL_BANKS if _has_bank(esapi, bank))


def _has_bank(esapi: ESAPI, bank: str) -> bool:
    _, _, digests = esapi.pcr_read(f"{bank}:0")
    return len(digests) == 1


def _extend(esapi: ESAPI, event: Measurement, banks: tuple[str, ...]) -> None:
    digests = [TPMT_HA(hashAlg=ALGORITHMS[bank], digest=TPMU_HA(**{bank: event.digest(bank)})) for bank in banks]
    esapi.pcr_extend(ESYS_TR(event.pcr), TPML_DIGEST_VALUES(digests))


def _listening_ports() -> set[int]:
    """From the kernel's table (proc(5), /proc/net/tcp): state 0A is LISTEN."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == "0A"}


def _free_pair() -> int:
    """A port that is free together with its successor: swtpm's TCTI expects the control channel there."""
    while True:
        port = random.choice(_PORTS)  # noqa: S311  # no secret: a place to listen
        with contextlib.suppress(OSError), socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", port))
            second.bind(("127.0.0.1", port + 1))
            return port
