"""TPMS_ATTEST: what a TPM says of itself, of a key (certify) or of its PCRs (quote) (TPM 2.0 Part 2 §10.12)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from foundation.faults import Fault
from foundation.reasons import Reason
from pki.tpm.algorithms import Hash, hash_of
from pki.tpm.reader import Reader, sized

MAGIC = 0xFF544347  # TPM_GENERATED_VALUE (Part 2 §6.2)
MAX_NAME = 2 + 64
MAX_SELECTIONS = 4
_PCR_OCTETS = (3, 4)  # 24 PCRs, or a TPM with up to 32


class AttestType(IntEnum):
    """TPM_ST of an attestation (Part 2 §6.9)."""

    CERTIFY = 0x8017
    QUOTE = 0x8018


@dataclass(frozen=True, slots=True)
class Counters:
    """TPMS_CLOCK_INFO (Part 2 §10.11.1). `clock` in milliseconds; `safe` is false while the clock may lie below one
    told before an unorderly stop."""

    reset_count: int
    restart_count: int
    clock: int
    safe: bool


@dataclass(frozen=True, slots=True)
class Certified:
    """TPMS_CERTIFY_INFO: the Name and qualified Name of the certified object."""

    name: bytes
    qualified_name: bytes


@dataclass(frozen=True, slots=True)
class Selection:
    """TPMS_PCR_SELECTION: PCR indices of one bank; `octets` is the bit map's size."""

    bank: Hash
    indices: tuple[int, ...]
    octets: int


@dataclass(frozen=True, slots=True)
class Quoted:
    """TPMS_QUOTE_INFO: what was selected, and the digest over the values in rising order."""

    selections: tuple[Selection, ...]
    digest: bytes


@dataclass(frozen=True, slots=True)
class Attest:
    """A parsed TPMS_ATTEST. `extra_data` is the qualifying data."""

    signer: bytes
    extra_data: bytes
    counters: Counters
    firmware_version: int
    attested: Certified | Quoted

    @classmethod
    def parse(cls, raw: bytes, kind: AttestType, path: str) -> Attest:
        """The one TPMS_ATTEST of type `kind` in `raw`. Raises `Fault(ATTEST_MAGIC | ATTEST_TYPE |
        TPM_STRUCTURE_MALFORMED | TPM_TRAILING_BYTES | TPM_ALGORITHM_REFUSED)`."""
        reader = Reader(raw, path)
        if reader.integer(4) != MAGIC:
            raise Fault(Reason.ATTEST_MAGIC, field=path)
        if reader.integer(2) != kind:
            raise Fault(Reason.ATTEST_TYPE, field=path)
        signer, extra_data = reader.sized(MAX_NAME), reader.sized(64)
        counters, firmware_version = _counters(reader), reader.integer(8)
        attested = _certified(reader) if kind is AttestType.CERTIFY else _quoted(reader)
        reader.finish()
        attest = cls(signer, extra_data, counters, firmware_version, attested)
        if attest.marshal() != raw:
            raise reader.fault("it is not spelled as a TPM does")
        return attest

    def marshal(self) -> bytes:
        """The fields in TPM order."""
        kind = AttestType.CERTIFY if isinstance(self.attested, Certified) else AttestType.QUOTE
        head = MAGIC.to_bytes(4, "big") + kind.to_bytes(2, "big") + sized(self.signer) + sized(self.extra_data)
        clock = self.counters
        numbers = ((clock.clock, 8), (clock.reset_count, 4), (clock.restart_count, 4), (clock.safe, 1))
        head += b"".join(int(number).to_bytes(size, "big") for number, size in numbers)
        return head + self.firmware_version.to_bytes(8, "big") + _marshal(self.attested)


def _counters(reader: Reader) -> Counters:
    clock, reset_count, restart_count, safe = (reader.integer(size) for size in (8, 4, 4, 1))
    if safe > 1:
        raise reader.fault("`safe` is neither 0 nor 1")
    return Counters(reset_count, restart_count, clock, bool(safe))


def _certified(reader: Reader) -> Certified:
    return Certified(reader.sized(MAX_NAME), reader.sized(MAX_NAME))


def _quoted(reader: Reader) -> Quoted:
    count = reader.integer(4)
    if count > MAX_SELECTIONS:
        raise reader.fault(f"{count} PCR selections, at most {MAX_SELECTIONS} are allowed")
    return Quoted(tuple(_selection(reader) for _ in range(count)), reader.sized(64))


def _selection(reader: Reader) -> Selection:
    """The bit of PCR n is bit n mod 8 of octet n / 8 (Part 2 §10.6.1)."""
    bank, octets = hash_of(reader.integer(2), reader.path), reader.integer(1)
    if octets not in _PCR_OCTETS:
        raise reader.fault(f"a PCR selection of {octets} octets")
    bits = int.from_bytes(reader.take(octets), "little")
    return Selection(bank, tuple(n for n in range(octets * 8) if bits >> n & 1), octets)


def _marshal(attested: Certified | Quoted) -> bytes:
    if isinstance(attested, Certified):
        return sized(attested.name) + sized(attested.qualified_name)
    selections = b"".join(map(_marshal_selection, attested.selections))
    return len(attested.selections).to_bytes(4, "big") + selections + sized(attested.digest)


def _marshal_selection(selection: Selection) -> bytes:
    bits = sum(1 << n for n in selection.indices)
    head = selection.bank.number.to_bytes(2, "big") + selection.octets.to_bytes(1, "big")
    return head + bits.to_bytes(selection.octets, "little")
