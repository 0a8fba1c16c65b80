"""Reference values: what a class of nodes may have measured at boot, and at runtime."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from foundation.faults import Fault
from foundation.fields import Fields
from foundation.reasons import Reason
from foundation.wire.enrolment import PCR_BANKS
from pki.tpm.algorithms import BANKS
from pki.tpm.ima import HASHES, RuntimeReference

MAX_DIGESTS = 1024
MAX_RUNTIME_DIGESTS = 250_000


@dataclass(frozen=True, slots=True)
class PcrReference:
    """What one PCR may hold: one of `values`, or else only digests of `events`, all of `required` among them, in a log
    that replays to the value."""

    values: frozenset[bytes] = frozenset()
    events: frozenset[bytes] = frozenset()
    required: frozenset[bytes] = frozenset()

    def allows(self, value: bytes, logged: tuple[bytes, ...] | None) -> bool:
        """`logged` are the digests that the log extended into this PCR, `None` when no log explains its value."""
        if value in self.values:
            return True
        known = self.events | self.required
        return logged is not None and bool(known) and self.required <= set(logged) <= known


@dataclass(frozen=True, slots=True)
class ReferenceValues:
    """What each PCR of `bank` may hold for one class of nodes. PCRs that are not named may hold anything. With
    `runtime` PCR 10 is quoted at every re-attestation, and explained by the runtime log. Equal values have one
    `fingerprint`."""

    bank: str
    pcrs: Mapping[int, PcrReference] = field(default_factory=dict)
    runtime: RuntimeReference | None = None
    fingerprint: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "fingerprint", _fingerprint(self.bank, self.pcrs, self.runtime))

    @classmethod
    def parse(cls, fields: Fields) -> ReferenceValues:
        """From `{bank, pcrs: {"0": {values, events, required}}, runtime: {digests, violations}}`, digests in lower-case
        hex. Raises the fault of `fields`."""
        bank, pcrs = fields.one_of("bank", PCR_BANKS, "sha256"), fields.section("pcrs")
        found = {n: _pcr(pcrs.section(str(n)), BANKS[bank].size) for n in range(24) if pcrs.has(str(n))}
        runtime = _runtime(fields.section("runtime")) if fields.has("runtime") else None
        pcrs.finish()
        fields.finish()
        return cls(bank, found, runtime)

    def check(self, bank: str, values: Mapping[int, bytes], logged: Mapping[int, tuple[bytes, ...]]) -> None:
        """Refuse quoted PCR `values` that these do not allow; `logged` holds the PCRs that the log explains. Raises
        `Fault(REFERENCE_MISMATCH)`."""
        if bank != self.bank:
            raise Fault(Reason.REFERENCE_MISMATCH, f"values for bank {self.bank}, the quote is of {bank}")
        for pcr, reference in sorted(self.pcrs.items()):
            if pcr not in values or not reference.allows(values[pcr], logged.get(pcr)):
                raise Fault(Reason.REFERENCE_MISMATCH, f"PCR {pcr}", field=f"evidence.pcr_values.{pcr}")


def _pcr(fields: Fields, size: int) -> PcrReference:
    names = ("values", "events", "required")
    found = PcrReference(
        *(frozenset(_digest(fields, name, text, size) for text in _texts(fields, name)) for name in names)
    )
    fields.finish()
    return found


def _runtime(fields: Fields) -> RuntimeReference:
    texts = fields.texts("digests", most=MAX_RUNTIME_DIGESTS)
    digests = frozenset(_digest(fields, "digests", text, len(text) // 2) for text in texts)
    if not {len(digest) for digest in digests} <= set(HASHES.values()):
        raise fields.fault("digests", "expected digests of SHA-256, SHA-384 or SHA-512")
    found = RuntimeReference(digests, fields.flag("violations", False))
    fields.finish()
    return found


def _fingerprint(bank: str, pcrs: Mapping[int, PcrReference], runtime: RuntimeReference | None) -> bytes:
    """Over everything that judges, in one order."""
    digest = hashlib.sha256(bank.encode())
    for pcr, reference in sorted(pcrs.items()):
        for name in ("values", "events", "required"):
            _add(digest, f"pcr {pcr} {name}", getattr(reference, name))
    if runtime is not None:
        _add(digest, f"runtime {runtime.violations}", runtime.digests)
    return digest.digest()


def _add(digest: hashlib._Hash, name: str, values: frozenset[bytes]) -> None:
    digest.update(b"\x00" + name.encode() + len(values).to_bytes(4, "big"))
    for value in sorted(values):
        digest.update(len(value).to_bytes(1, "big") + value)


def _texts(fields: Fields, name: str) -> tuple[str, ...]:
    return fields.texts(name, (), most=MAX_DIGESTS)


def _digest(fields: Fields, name: str, text: str, size: int) -> bytes:
    try:
        raw = bytes.fromhex(text)
    except ValueError:
        raw = b""
    if len(raw) != size or raw.hex() != text:
        raise fields.fault(name, f"expected digests of {size} octets in lower-case hex")
    return raw
