"""From a published bundle to an enforced policy: verify, load, raise the floor.

Laws held here:
- nothing of a bundle is loaded before its signature verifies against the pinned key;
- the floor (number and digest of the newest revision ever enforced here) is on disk before the revision is enforced, so
  that neither a restart nor a restored authority can bring back an older one, or another one of the same number;
- it is loaded in every worker, or enforced in none;
- a revision that does not load raises no floor: after a restart, the one before it can still be enforced.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from foundation.decisionlog.masking import Mask
from foundation.faults import Fault
from foundation.fields import Fields
from foundation.files import write_atomic
from foundation.identity import PolicyPublished
from foundation.reasons import Reason
from gateway.proxy.route import RouteTable
from gateway.snapshot import PolicyPart
from policies.engine import PolicyEngine
from policies.lifecycle.revision import LoadedRevision, verify
from policies.loading import load_engine
from policies.model import FOREVER
from policies.settings import PolicySettings
from policies.signing import VerifyingKey, parse_verifying_key

CLOCK_SECONDS = 5.0
_MAX_FLOOR_BYTES = 1024


LoadEverywhere = Callable[[PolicyPublished, VerifyingKey], Awaitable[None]]


async def _nowhere_else(published: PolicyPublished, key: VerifyingKey) -> None:
    """Where one process is all there is."""


class PinnedKey:
    """The policy key that this gateway pins, in a PEM file. Raises `Fault(FILE_UNREADABLE | REVISION_SIGNATURE)`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pem = self._read()
        self.key = parse_verifying_key(self._pem)

    def load(self) -> bool:
        """Read it anew; whether it is another. Raises `Fault`; then the one before stays."""
        pem = self._read()
        if pem == self._pem:
            return False
        self.key, self._pem = parse_verifying_key(pem), pem
        return True

    def differs(self) -> bool:
        """What `load` would say now, or raise."""
        pem = self._read()
        parse_verifying_key(pem)
        return pem != self._pem

    def _read(self) -> bytes:
        try:
            return self._path.read_bytes()
        except OSError as error:
            raise Fault(Reason.FILE_UNREADABLE, error.strerror or "unreadable", field=str(self._path)) from error


class Floor(NamedTuple):
    """The newest revision ever enforced here."""

    number: int
    digest: str


class Enforcer:
    """Implements `gateway.follow.LoadPolicy`."""

    def __init__(
        self,
        settings: PolicySettings,
        key: VerifyingKey,
        floor_file: Path,
        mask: Mask | None = None,
        everywhere: LoadEverywhere = _nowhere_else,
    ) -> None:
        """`mask` is for what the record keeps of questions. `everywhere` loads what is verified by `key` wherever else
        it is to be enforced; it raises `Fault` when that cannot be."""
        self._settings = settings
        self._mask = mask
        self.key = key
        self._floor_file = floor_file
        self._everywhere = everywhere

    async def __call__(self, published: PolicyPublished) -> PolicyPart:
        """Raises `Fault` with what is wrong with the bundle; then nothing has changed."""
        floor = read_floor(self._floor_file)
        loaded = await asyncio.to_thread(verify, published.bundle, self.key, floor.number - 1)
        _check_above(floor, loaded)
        engine = await load_engine(loaded.compiled, self._settings, mask=self._mask)
        try:
            await self._everywhere(published, self.key)
            await asyncio.to_thread(write_floor, self._floor_file, Floor(loaded.number, loaded.digest))
        except BaseException:
            await engine.close()
            raise
        return _part(loaded, engine, published.at)


async def load_part(published: PolicyPublished, key: bytes, settings: PolicySettings, mask: Mask) -> PolicyPart:
    """A worker's own part of a revision that the main process verified by `key` (PEM) and holds against the floor.
    Raises `Fault`."""
    verifying = parse_verifying_key(key)
    loaded = await asyncio.to_thread(verify, published.bundle, verifying, published.revision - 1)
    engine = await load_engine(loaded.compiled, settings, mask=mask)
    return _part(loaded, engine, published.at)


def _part(loaded: LoadedRevision, engine: PolicyEngine, at: float) -> PolicyPart:
    compiled = loaded.compiled
    every = CLOCK_SECONDS if {(), ("now",)} & set(compiled.reads) else FOREVER
    return PolicyPart(loaded.number, loaded.digest, engine, RouteTable(loaded.routes), compiled, every, at)


async def try_out(bundle: bytes, key: VerifyingKey, settings: PolicySettings) -> int:
    """The number of a revision that every gateway could enforce: it verifies, and loads into the embedded engine.
    Raises `Fault` for one that does not, so that it is refused where it is published."""
    loaded = await asyncio.to_thread(verify, bundle, key, 0)
    engine = await load_engine(loaded.compiled, replace(settings, engine="wasm"))
    await engine.close()
    return loaded.number


def _check_above(floor: Floor, loaded: LoadedRevision) -> None:
    if loaded.number == floor.number and loaded.digest != floor.digest:
        raise Fault(Reason.REVISION_DOWNGRADE, f"number {loaded.number} was another revision before", field="number")


def read_floor(path: Path) -> Floor:
    """The floor on disk; zero before the first revision. A floor that cannot be read is no reason to forget it: raises
    `Fault(FILE_UNREADABLE)`."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return Floor(0, "")
    except OSError as error:
        raise Fault(Reason.FILE_UNREADABLE, error.strerror or "unreadable", field=str(path)) from error
    fields = Fields.from_json(raw, str(path), Reason.FILE_UNREADABLE, max_bytes=_MAX_FLOOR_BYTES)
    return Floor(fields.integer("number"), fields.text("digest", max_length=64))


def write_floor(path: Path, floor: Floor) -> None:
    """Keep `floor`, whole or not at all."""
    write_atomic(path, json.dumps(floor._asdict()).encode())
