"""Reading bytes strictly: a cursor that never looks past the end, and that refuses what is left over.

TPM structures are big-endian (TPM 2.0 Part 1 §4.1), event logs little-endian. Every fault names the structure by the
path that the caller gave.
"""

from __future__ import annotations

from typing import Literal

from foundation.faults import Fault
from foundation.reasons import Reason

MAX_STRUCTURE_BYTES = 4096


class Reader:
    """A cursor over `raw`. `path` names what is read in every fault; `malformed` is the reason when bytes are missing
    or out of bounds, `trailing` when some are left over."""

    __slots__ = ("_at", "_malformed", "_order", "_raw", "_trailing", "path")

    def __init__(
        self,
        raw: bytes,
        path: str,
        *,
        order: Literal["big", "little"] = "big",
        most: int = MAX_STRUCTURE_BYTES,
        malformed: Reason = Reason.TPM_STRUCTURE_MALFORMED,
        trailing: Reason = Reason.TPM_TRAILING_BYTES,
    ) -> None:
        self._raw, self._at, self._order = raw, 0, order
        self.path, self._malformed, self._trailing = path, malformed, trailing
        if len(raw) > most:
            raise self.fault(f"{len(raw)} bytes, at most {most} are allowed")

    def integer(self, size: int) -> int:
        """An unsigned integer of `size` octets."""
        return int.from_bytes(self.take(size), self._order)

    def take(self, size: int) -> bytes:
        """The next `size` octets."""
        end = self._at + size
        if end > len(self._raw):
            raise self.fault(f"ends at octet {len(self._raw)}, {end - len(self._raw)} too early")
        found = self._raw[self._at : end]
        self._at = end
        return found

    def sized(self, most: int) -> bytes:
        """The content of a TPM2B: a size of two octets, then as many octets, `most` at most (Part 2 §10.4)."""
        size = self.integer(2)
        if size > most:
            raise self.fault(f"a field of {size} octets, at most {most} are allowed")
        return self.take(size)

    @property
    def ended(self) -> bool:
        return self._at == len(self._raw)

    def finish(self) -> None:
        """Refuse every octet that was not read."""
        if not self.ended:
            raise Fault(self._trailing, f"{len(self._raw) - self._at} octets are left over", field=self.path)

    def fault(self, detail: str) -> Fault:
        """What is read does not parse."""
        return Fault(self._malformed, detail, field=self.path)


def sized(content: bytes) -> bytes:
    """`content` as a TPM2B (Part 2 §10.4)."""
    return len(content).to_bytes(2, "big") + content
