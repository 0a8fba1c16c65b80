"""A firmware's measured boot: the events it extends into the PCRs, and the binary log it leaves.

Source: TCG PC Client Platform Firmware Profile (PFP) v1.06, §10 (event log formats; all integers little-endian).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from uuid import UUID

ALGORITHMS = {"sha1": 0x0004, "sha256": 0x000B, "sha384": 0x000C, "sha512": 0x000D}
_DIGEST_SIZES = {"sha1": 20, "sha256": 32, "sha384": 48, "sha512": 64}
EV_NO_ACTION, EV_SEPARATOR, EV_S_CRTM_VERSION = 0x03, 0x04, 0x08
EV_EFI_VARIABLE_DRIVER_CONFIG, EV_EFI_VARIABLE_BOOT = 0x80000001, 0x80000002
EV_EFI_BOOT_SERVICES_APPLICATION, EV_EFI_ACTION = 0x80000003, 0x80000007
EV_EFI_PLATFORM_FIRMWARE_BLOB = 0x80000008
_EFI_GLOBAL = UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")


@dataclass(frozen=True, slots=True)
class Measurement:
    """One event: `measured` is what is hashed into `pcr`; `data` is what the log says about it."""

    pcr: int
    event_type: int
    measured: bytes
    data: bytes

    def digest(self, bank: str) -> bytes:
        return hashlib.new(bank, self.measured).digest()


def healthy_boot(*, firmware: str = "sallyport-firmware-1.0", secure_boot: bool = True) -> tuple[Measurement, ...]:
    """A boot with events in PCRs 0 to 7. Another `firmware` moves PCR 0, `secure_boot` PCR 7."""
    blob = struct.pack("<QQ", 0xFFC00000, 0x00400000)  # UEFI_PLATFORM_FIRMWARE_BLOB: base, length
    loader = struct.pack("<QQQQ", 0x7E000000, 0x00100000, 0, 0)  # UEFI_IMAGE_LOAD_EVENT without device path
    logged_as_measured = (
        (0, EV_S_CRTM_VERSION, (firmware + "\0").encode("utf-16-le")),
        (7, EV_EFI_VARIABLE_DRIVER_CONFIG, _variable("SecureBoot", bytes([secure_boot]))),
        (1, EV_EFI_VARIABLE_BOOT, _variable("BootOrder", b"\x00\x00")),
        (4, EV_EFI_ACTION, b"Calling EFI Application from Boot Option"),
        *((pcr, EV_SEPARATOR, bytes(4)) for pcr in range(8)),
        (5, EV_EFI_ACTION, b"Exit Boot Services Invocation"),
    )
    events = [Measurement(pcr, kind, data, data) for pcr, kind, data in logged_as_measured]
    events.insert(1, Measurement(0, EV_EFI_PLATFORM_FIRMWARE_BLOB, firmware.encode(), blob))
    events.append(Measurement(4, EV_EFI_BOOT_SERVICES_APPLICATION, b"demonstration boot loader", loader))
    return tuple(events)


def event_log(events: Iterable[Measurement], banks: tuple[str, ...]) -> bytes:
    """The crypto-agile log: a TCG_PCR_EVENT holding the Spec ID event, then TCG_PCR_EVENT2s."""
    return _spec_id_event(banks) + b"".join(_event(event, banks) for event in events)


def _spec_id_event(banks: tuple[str, ...]) -> bytes:
    body = b"Spec ID Event03\0" + struct.pack("<IBBBBI", 0, 0, 2, 0, 2, len(banks))
    body += b"".join(struct.pack("<HH", ALGORITHMS[bank], _DIGEST_SIZES[bank]) for bank in banks) + b"\0"
    return struct.pack("<II20xI", 0, EV_NO_ACTION, len(body)) + body


def _event(event: Measurement, banks: tuple[str, ...]) -> bytes:
    digests = b"".join(struct.pack("<H", ALGORITHMS[bank]) + event.digest(bank) for bank in banks)
    head = struct.pack("<III", event.pcr, event.event_type, len(banks))
    return head + digests + struct.pack("<I", len(event.data)) + event.data


def _variable(name: str, value: bytes) -> bytes:
    """UEFI_VARIABLE_DATA."""
    encoded = name.encode("utf-16-le")
    return _EFI_GLOBAL.bytes_le + struct.pack("<QQ", len(name), len(value)) + encoded + value
