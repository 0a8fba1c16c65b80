"""Linux's runtime measurements (IMA): what was measured after the boot, and its replay to PCR 10.

Source: Linux, Documentation/security/IMA-templates.rst; security/integrity/ima/ima_template.c and ima_queue.c. How the
log is framed and replayed is in `foundation.wire.measurements`. The data of a template is a row of fields, each with
its length in 4 octets, little-endian: `d-ng` (`sha256:` NUL digest), `n-ng` (path, NUL), and with `ima-sig` `sig`.

Laws held here:
- the log is a claim: an entry counts once the quoted PCR 10 bears it out, with all entries before it;
- only what the template's data says is judged, for that is what was extended; of a violation nobody knows what it was.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from foundation.faults import Fault
from foundation.reasons import Reason
from foundation.wire.measurements import MAX_MEASUREMENTS_BYTES, RUNTIME_PCR, Framed, framed
from pki.tpm.algorithms import BANKS
from pki.tpm.reader import Reader

TEMPLATES = {b"ima-ng": 2, b"ima-sig": 3}  # how many fields each has
HASHES = {b"sha256": 32, b"sha384": 48, b"sha512": 64}
MAX_PATH = 4096 + 1
MAX_SIGNATURE = 1024
_BOOT_AGGREGATE = b"boot_aggregate"


@dataclass(frozen=True, slots=True)
class Measurement:
    """One entry. `digest` is the file's; `path` is the kernel's word for it, and not authenticated to be a path of this
    machine's root."""

    entry: Framed
    digest: bytes
    path: bytes


@dataclass(frozen=True, slots=True)
class Aggregate:
    """PCR 10 after the first `count` entries; with none of them it is as after a reset."""

    count: int
    value: bytes

    @classmethod
    def at_reset(cls, bank: str) -> Aggregate:
        return cls(0, bytes(BANKS[bank].size))

    def extended(self, entries: Iterable[Measurement], bank: str) -> Aggregate:
        """The aggregate after these too."""
        count, value = self.count, self.value
        for each in entries:
            count, value = count + 1, each.entry.extend(bank, value)
        return Aggregate(count, value)


@dataclass(frozen=True, slots=True)
class RuntimeReference:
    """What a class of nodes may run: `digests` of files, by whatever path. `violations` lets entries pass whose file
    was written to while it was measured: nobody knows what ran."""

    digests: frozenset[bytes]
    violations: bool = False

    def check(self, entries: Iterable[Measurement], first: int) -> None:
        """Refuse what is not among the digests; `first` is the number of the first entry. The kernel's own first entry
        sums up the boot, which the other PCRs tell in full. Raises `Fault(MEASUREMENT_UNKNOWN)` naming the entry."""
        for number, each in enumerate(entries, first):
            if number == 0 and each.path == _BOOT_AGGREGATE:
                continue
            if not (self.violations if each.entry.is_violation else each.digest in self.digests):
                path = each.path[:256].decode("utf-8", "replace")
                detail = f"entry {number}: {path!r}{' was written to meanwhile' if each.entry.is_violation else ''}"
                raise Fault(Reason.MEASUREMENT_UNKNOWN, detail, field="evidence.measurements")


def parse_measurements(raw: bytes, path: str) -> tuple[Measurement, ...]:
    """The entries in `raw`. Raises `Fault(MEASUREMENTS_MALFORMED)` for one that is not whole, of another template or
    PCR, or spelled otherwise than a kernel does."""
    if len(raw) > MAX_MEASUREMENTS_BYTES:
        raise _malformed(path, f"{len(raw)} octets, at most {MAX_MEASUREMENTS_BYTES} are allowed")
    try:
        return tuple(_measurement(entry, path) for entry in framed(raw))
    except ValueError as error:
        raise _malformed(path, str(error)) from None


def _measurement(entry: Framed, path: str) -> Measurement:
    wanted = TEMPLATES.get(entry.template)
    if entry.pcr != RUNTIME_PCR or wanted is None:
        raise _malformed(path, f"an entry of PCR {entry.pcr} by the template {entry.template!r}")
    fields = _fields(entry.data, path, wanted)
    digest, name = _digest(fields[0], path, entry.is_violation), fields[1]
    if not name.endswith(b"\0") or b"\0" in name[:-1] or not 1 < len(name) <= MAX_PATH:
        raise _malformed(path, "a path that is empty, too long, or does not end where it ends")
    if not entry.is_violation and hashlib.sha1(entry.data, usedforsecurity=False).digest() != entry.template_sha1:
        raise _malformed(path, "an entry whose SHA-1 is not that of its data")
    return Measurement(entry, digest, name[:-1])


def _fields(data: bytes, path: str, count: int) -> tuple[bytes, ...]:
    malformed = Reason.MEASUREMENTS_MALFORMED
    reader = Reader(data, path, order="little", most=len(data), malformed=malformed, trailing=malformed)
    found = tuple(reader.take(_bounded(reader)) for _ in range(count))
    reader.finish()
    return found


def _bounded(reader: Reader) -> int:
    size = reader.integer(4)
    if size > MAX_PATH + MAX_SIGNATURE:
        raise reader.fault(f"a field of {size} octets")
    return size


def _digest(field: bytes, path: str, violation: bool) -> bytes:
    """Of a violation it is zeros, before Linux 6.4 twenty of them for every hash."""
    name, separator, digest = field.partition(b":\0")
    sizes = {HASHES.get(name), 20 if violation else None}
    if not separator or name not in HASHES or len(digest) not in sizes or (violation and any(digest)):
        raise _malformed(path, f"a digest of {len(digest)} octets by {name[:16]!r}")
    return digest


def _malformed(path: str, detail: str) -> Fault:
    return Fault(Reason.MEASUREMENTS_MALFORMED, detail, field=path)
