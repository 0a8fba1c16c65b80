"""The firmware's event log, crypto-agile form, and its replay to PCR values.

Source: TCG PC Client Platform Firmware Profile (PFP) v1.06 §10; all integers little-endian.

Laws held here:
- the log is a claim. Only digests count, for only they are what the PCRs were extended with;
- an event's type and data are not authenticated;
- nothing is decided by an event's type but what is not extended (EV_NO_ACTION), which the replay then bears out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from foundation.reasons import Reason
from foundation.wire.enrolment import MAX_EVENT_LOG_BYTES
from pki.tpm.algorithms import BANKS, SHA1_NUMBER
from pki.tpm.reader import Reader

EV_NO_ACTION = 0x00000003
MAX_EVENT_DATA = 128 * 1024
MAX_BANKS = 5
PCRS = 24
FIRMWARE_PCRS = frozenset(range(8))  # PCRs 0 to 7 hold the firmware's measurements alone (PFP §3.3.3)
_SPEC_ID = b"Spec ID Event03\x00"
_STARTUP_LOCALITY = b"StartupLocality\x00"
_LOCALITIES = (0, 3, 4)
_DIGEST_SIZES = {SHA1_NUMBER: 20, 0x000B: 32, 0x000C: 48, 0x000D: 64, 0x0012: 32}
_DRTM_PCRS = range(17, 23)  # all ones until a dynamic launch (PFP §3.3.1)


@dataclass(frozen=True, slots=True)
class Event:
    """One TCG_PCR_EVENT2. `digests` by TPM_ALG_ID. `kind` and `data` are not authenticated."""

    pcr: int
    kind: int
    digests: Mapping[int, bytes]
    data: bytes

    @property
    def extends(self) -> bool:
        return self.kind != EV_NO_ACTION

    def digest(self, bank: str) -> bytes:
        return self.digests[BANKS[bank].number]


@dataclass(frozen=True, slots=True)
class EventLog:
    """A parsed log. `algorithms` are the TPM_ALG_IDs of its banks, `locality` the one that PCR 0 starts with."""

    algorithms: tuple[int, ...]
    events: tuple[Event, ...]
    locality: int

    @classmethod
    def parse(cls, raw: bytes, path: str) -> EventLog:
        """The log in `raw`. Raises `Fault(EVENT_LOG_MALFORMED)`, for a log of the SHA-1 form too: it has no digests of
        a bank that is quoted."""
        malformed = Reason.EVENT_LOG_MALFORMED
        reader = Reader(raw, path, order="little", most=MAX_EVENT_LOG_BYTES, malformed=malformed, trailing=malformed)
        sizes = _header(reader)
        events = []
        while not reader.ended:
            events.append(_event(reader, sizes))
        return cls(tuple(sizes), tuple(events), _locality(events, reader))

    def has(self, bank: str) -> bool:
        return BANKS[bank].number in self.algorithms

    def replay(self, bank: str) -> dict[int, bytes]:
        """The values that all 24 PCRs of `bank` hold after the logged events."""
        size = BANKS[bank].size
        values = {pcr: (b"\xff" if pcr in _DRTM_PCRS else b"\x00") * size for pcr in range(PCRS)}
        values[0] = self.locality.to_bytes(size, "big")
        for event in self.events:
            if event.extends:
                values[event.pcr] = hashlib.new(bank, values[event.pcr] + event.digest(bank)).digest()
        return values

    def digests(self, bank: str) -> dict[int, tuple[bytes, ...]]:
        """What was extended into each PCR of `bank`, in order; PCRs without events are left out."""
        found: dict[int, list[bytes]] = {}
        for event in self.events:
            if event.extends:
                found.setdefault(event.pcr, []).append(event.digest(bank))
        return {pcr: tuple(items) for pcr, items in found.items()}


def _header(reader: Reader) -> dict[int, int]:
    """The first event, a TCG_PCR_EVENT (PFP §10.2.1) that holds a TCG_EfiSpecIdEvent (§10.4.5.1): digest sizes by
    TPM_ALG_ID."""
    pcr, kind, _digest = reader.integer(4), reader.integer(4), reader.take(20)
    body = reader.take(_bounded(reader, MAX_EVENT_DATA))
    if pcr != 0 or kind != EV_NO_ACTION or not body.startswith(_SPEC_ID):
        raise reader.fault("no Spec ID event stands first: this is a log of the SHA-1 form, or none")
    malformed = Reason.EVENT_LOG_MALFORMED
    inner = Reader(body, f"{reader.path}.spec_id", order="little", malformed=malformed, trailing=malformed)
    inner.take(len(_SPEC_ID) + 8)  # platform class, versions, size of an address: nothing here depends on them
    sizes = _algorithms(inner)
    inner.take(inner.integer(1))
    inner.finish()
    return sizes


def _algorithms(reader: Reader) -> dict[int, int]:
    count = reader.integer(4)
    if not 0 < count <= MAX_BANKS:
        raise reader.fault(f"{count} banks, 1 to {MAX_BANKS} are allowed")
    sizes: dict[int, int] = {}
    for _ in range(count):
        number, size = reader.integer(2), reader.integer(2)
        if number in sizes or _DIGEST_SIZES.get(number) != size:
            raise reader.fault(f"bank 0x{number:04x} with digests of {size} octets")
        sizes[number] = size
    return sizes


def _event(reader: Reader, sizes: Mapping[int, int]) -> Event:
    """TCG_PCR_EVENT2 (PFP §10.2.2): every bank once."""
    pcr, kind, count = reader.integer(4), reader.integer(4), reader.integer(4)
    if pcr >= PCRS and kind != EV_NO_ACTION:
        raise reader.fault(f"PCR {pcr}")
    if count != len(sizes):
        raise reader.fault(f"an event with {count} digests, the log has {len(sizes)} banks")
    digests: dict[int, bytes] = {}
    for _ in range(count):
        number = reader.integer(2)
        if number not in sizes or number in digests:
            raise reader.fault(f"an event with a second or unknown digest 0x{number:04x}")
        digests[number] = reader.take(sizes[number])
    return Event(pcr, kind, digests, reader.take(_bounded(reader, MAX_EVENT_DATA)))


def _bounded(reader: Reader, most: int) -> int:
    size = reader.integer(4)
    if size > most:
        raise reader.fault(f"an event of {size} octets, at most {most} are allowed")
    return size


def _locality(events: list[Event], reader: Reader) -> int:
    """The locality of TPM2_Startup, from at most one such event before PCR 0 is first extended (PFP §10.4.5.3)."""
    found: int | None = None
    started = False
    for event in events:
        started = started or (event.extends and event.pcr == 0)
        if not event.extends and event.data.startswith(_STARTUP_LOCALITY):
            locality = int.from_bytes(event.data[len(_STARTUP_LOCALITY) :], "little")
            if found is not None or started or locality not in _LOCALITIES:
                raise reader.fault("a startup locality that is odd, late or told twice")
            found = locality
    return found or 0
