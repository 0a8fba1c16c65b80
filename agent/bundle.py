"""What this node decides by while it is cut off: the last bundle that its authority gave it.

Laws held here:
- nothing of an archive is used before its signature verifies, here and again after each start (`policies.signed`);
- no revision below the highest one ever accepted is accepted again, nor another one of the same number. The floor is
  kept twice: sealed with the bundle, and in the open, so that a loss of the seal loses no floor;
- trust time never goes back: the authority's time of each bundle is told to it, and at each start the time that was
  sealed with the bundle, minutes ago at most;
- a bundle is of this node: one that speaks of another is refused;
- what the authority says of this node ends it: refused as revoked, in quarantine, unknown or failed, the node forgets
  its bundle, and decides nothing by itself any more;
- on disk it is sealed to the TPM's boot state (`agent.sealed_file`): a copied disk holds nothing that can be read.

The policy key is pinned with the first bundle, or by the settings. Where the settings name none, another key is
believed: the channel on which it comes is pinned to the root, and whoever holds the authority can certify anybody
anyway. The change is an audit record. A key in the settings is believed alone.

What is not defended: a disk that is put back to an earlier state on the same machine, in the same boot state, while the
authority cannot be reached, brings back the bundle of then, floor included; its age by trust time bounds what it is
good for.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from agent.sealed_file import Vault
from foundation.clock import Clock
from foundation.faults import Fault
from foundation.fields import Fields
from foundation.files import read_bounded, write_secret
from foundation.first import first_of
from foundation.identifiers import SpiffeId
from foundation.reasons import Reason
from foundation.wire.bundle import MAX_ARCHIVE_BYTES, MAX_HEAD_BYTES, NodeBundle
from foundation.wire.enrolment import PcrSelection
from policies.engine import CompiledPolicy
from policies.signed import SignedRevision, verify
from policies.signing import parse_verifying_key, public_pem
from policies.staleness import StalenessSettings

STATE, REVISION, FLOOR = "bundle.sealed", "revision.sealed", "bundle.floor"
_STATE_BYTES = MAX_HEAD_BYTES + 1024
_MAX_FLOOR_BYTES = 1024
_FIRMWARE = tuple(range(8))  # firmware, its settings, boot loader, secure boot (TCG PC Client Platform Firmware §3.3.4)
_LEAST_PAUSE = 5.0  # seconds between two requests, whoever asks for them
_FIRST_PAUSE, _FIRST_PAUSE_HELD = 2.0, 30.0  # at most, without and with a bundle: thousands may start at once
_ENDING = frozenset(
    {
        Reason.IDENTITY_REVOKED,
        Reason.IDENTITY_QUARANTINED,
        Reason.IDENTITY_UNKNOWN,
        Reason.POSTURE_FAILED,
    }
)
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BundleSettings:
    """Section `[agent.bundle]`. `pcrs` are those of `bank` to whose values the bundle is sealed. `policy_key` is a PEM
    file with the only policy key that is believed; None believes the authority."""

    bank: str = "sha256"
    pcrs: tuple[int, ...] = _FIRMWARE
    policy_key: Path | None = None

    @classmethod
    def parse(cls, fields: Fields) -> BundleSettings:
        """Raises `Fault(SETTING_INVALID | SETTING_UNKNOWN)`."""
        pcrs = fields.integers("pcrs", least=0, most=23, count=24) if fields.has("pcrs") else _FIRMWARE
        settings = cls(
            bank=fields.one_of("bank", ("sha256", "sha384", "sha512"), "sha256"),
            pcrs=tuple(sorted(set(pcrs))),
            policy_key=Path(fields.text("policy_key")) if fields.has("policy_key") else None,
        )
        if not settings.pcrs:
            raise fields.fault("pcrs", "sealed to nothing: name some, or leave it out for 0 to 7")
        fields.finish()
        return settings

    @property
    def selection(self) -> PcrSelection:
        return PcrSelection(self.bank, self.pcrs)


class Floor(NamedTuple):
    """The highest revision ever accepted here, 0 before the first, and its digest."""

    number: int = 0
    digest: str = ""


@dataclass(frozen=True, slots=True)
class Held:
    """A bundle in use. `number` and `compiled` are of its signed revision, which is verified; `bundle` is without its
    archive."""

    bundle: NodeBundle
    number: int
    digest: str
    compiled: CompiledPolicy

    @property
    def bounds(self) -> StalenessSettings:
        """From which ages on it is stale, and expired."""
        return StalenessSettings(self.bundle.terms.stale_after, self.bundle.terms.expired_after)


class TrustClock(Clock, Protocol):
    """What is needed of `foundation.trusttime.TrustTime`."""

    def heard(self, heartbeat: float) -> None: ...


Fetch = Callable[[int], NodeBundle]
"""Asks the authority, with the revision that is there. Blocks. Raises `Fault`."""
Listener = Callable[[Held | None], None]
Note = Callable[[str, dict[str, Any]], None]
"""Puts something on the node's record: what happened, in the past tense, and plain values."""


class Bundles:
    """The bundle in use, and its keeping. Call `load` once, then keep `run` running."""

    def __init__(
        self,
        node: SpiffeId,
        fetch: Fetch,
        vault: Vault,
        folder: Path,
        time: TrustClock,
        note: Note,
        settings: BundleSettings | None = None,
        draw: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """`folder` is where the floor is kept. `draw` spreads requests over time."""
        self.current: Held | None = None
        self.fault: Fault | None = None
        """Why the last request gave nothing; None when it did."""
        self._node = node
        self._fetch = fetch
        self._vault = vault
        self._floor_file = folder / FLOOR
        self._time = time
        self._note = note
        self._settings = settings or BundleSettings()
        self._draw = draw
        self._listeners: list[Listener] = []
        self._asked = asyncio.Event()
        self._failures = 0

    def listen(self, listener: Listener) -> None:
        """Call `listener` with every new bundle, and with None when there is none any more; now with what there is."""
        self._listeners.append(listener)
        listener(self.current)

    def ask(self) -> None:
        """There may be a newer one: fetch it soon."""
        self._asked.set()

    async def load(self) -> None:
        """Take up what was kept. What cannot be opened or does not verify is told, and left."""
        try:
            held = await asyncio.to_thread(self._recall)
        except Fault as fault:
            _LOG.warning("the bundle that was kept is of no use: %s", fault)
            self._note("bundle.refused", {"reason": fault.reason.code, "kept": True})
            return
        if held is not None:
            self._use(held)

    async def run(self) -> None:
        """Fetch, again and again, until cancelled."""
        await self._time.sleep(self._draw(0.0, _FIRST_PAUSE if self.current is None else _FIRST_PAUSE_HELD))
        while True:
            await self.refresh()
            await self._time.sleep(_LEAST_PAUSE)
            await self._wait()

    async def refresh(self) -> None:
        """Fetch once. What goes wrong is kept in `fault`."""
        self._asked.clear()
        try:
            await self._renew()
        except Fault as fault:
            self._failures += 1
            self._failed(fault)
            if self.current is not None:  # for the time that passes, lest a clock that is set back makes it young again
                await self._try_to_keep(self.current)
        else:
            self._failures, self.fault = 0, None

    # --- one bundle after the other --------------------------------------------------------------------

    async def _renew(self) -> None:
        held = self.current
        bundle = await asyncio.to_thread(self._fetch, held.number if held else 0)
        if held is not None and bundle.policy_key != held.bundle.policy_key:
            bundle = await asyncio.to_thread(self._fetch, 0)  # all of it, to be verified by that key
        fresh, archive = await asyncio.to_thread(self._accepted, bundle, held)
        self._time.heard(bundle.at)
        if held is None or fresh.digest != held.digest:
            self._note("bundle.accepted", {"revision": fresh.number, "digest": fresh.digest})
        if held is not None and _spki(bundle.policy_key) != _spki(held.bundle.policy_key):
            _LOG.warning("the authority vouches for another policy key than before")
            self._note("policy_key.changed", {"sha256": hashlib.sha256(bundle.policy_key).hexdigest()})
        self._use(fresh)
        await self._try_to_keep(fresh, archive)

    async def _try_to_keep(self, held: Held, archive: bytes = b"") -> None:
        try:
            await asyncio.to_thread(self._keep, held, archive)
        except (OSError, Fault) as error:  # it is in use, and will be gone after a restart
            _LOG.error("the bundle cannot be kept: %s", error)

    def _accepted(self, bundle: NodeBundle, held: Held | None) -> tuple[Held, bytes]:
        """What `bundle` is to this node, and the archive where it is another than before. Raises `Fault`."""
        # 1. It is about this node, and the policy key is one that is believed.
        if bundle.record.id != self._node:
            raise Fault(Reason.SERVER_UNTRUSTED, f"the bundle is of {bundle.record.id}", field="bundle.record")
        self._check_key(bundle)
        # 2. Without an archive, the revision is the one that is held, and stays.
        if not bundle.archive:
            if held is None or bundle.numbers.policy != held.number:
                raise Fault(Reason.REVISION_MISSING, "no archive came with the bundle", field="bundle.archive")
            return replace(held, bundle=bundle), b""
        # 3. With one, it is signed, of the number stated, and not below the floor.
        floor = self._floor(held)
        revision = verify(bundle.archive, parse_verifying_key(bundle.policy_key), floor.number - 1)
        _check_number(revision, bundle, floor)
        slim = replace(bundle, archive=b"")
        return Held(slim, revision.number, revision.digest, revision.compiled), bundle.archive

    def _check_key(self, bundle: NodeBundle) -> None:
        path = self._settings.policy_key
        if path is not None and _spki(read_bounded(path, MAX_HEAD_BYTES)) != _spki(bundle.policy_key):
            raise Fault(Reason.REVISION_SIGNATURE, "the policy key is not the one in the settings", field=str(path))

    def _use(self, held: Held | None) -> None:
        self.current = held
        for listener in self._listeners:
            listener(held)

    def _failed(self, fault: Fault) -> None:
        told, self.fault = self.fault, fault
        if told is None or told.reason is not fault.reason:
            _LOG.warning("no fresh bundle: %s", fault)
            if fault.reason is not Reason.SERVER_UNREACHABLE:
                self._note("bundle.refused", {"reason": fault.reason.code, "kept": False})
        if fault.reason in _ENDING and self.current is not None:
            self._vault.remove(STATE, REVISION)
            self._note("bundle.forgotten", {"reason": fault.reason.code})
            self._use(None)

    async def _wait(self) -> None:
        """Until the next request is due, or wanted. Failures are repeated at growing pauses."""
        refresh = self.current.bundle.terms.refresh if self.current else 60.0
        pause = min(refresh, _LEAST_PAUSE * 2 ** min(self._failures, 10)) if self._failures else refresh
        await first_of(self._asked.wait(), self._time.sleep(self._draw(0.5, 1.0) * pause))

    # --- on disk ---------------------------------------------------------------------------------------

    def _keep(self, held: Held, archive: bytes) -> None:
        """The floor first: a crash in between loses a bundle, never a floor."""
        floor = {"number": held.number, "digest": held.digest}
        state = json.dumps(floor | {"time": self._time.now()}).encode() + b"\n" + held.bundle.encode()
        if archive:
            write_secret(self._floor_file, json.dumps(floor).encode())
            self._vault.write(REVISION, archive)
        self._vault.write(STATE, state)

    def _recall(self) -> Held | None:
        raw = self._vault.read(STATE, _STATE_BYTES)
        archive = self._vault.read(REVISION, MAX_ARCHIVE_BYTES)
        if raw is None or archive is None:
            return None
        head, _newline, bundle = raw.partition(b"\n")
        fields = Fields.from_json(head, STATE, Reason.FILE_UNREADABLE, max_bytes=_MAX_FLOOR_BYTES)
        self._time.heard(fields.number("time"))
        sealed = _read_floor(fields)
        kept = replace(NodeBundle.parse(bundle), archive=archive)
        held = Held(replace(kept, archive=b""), sealed.number, sealed.digest, _NO_POLICY)
        return self._accepted(kept, held)[0]

    def _floor(self, held: Held | None) -> Floor:
        """The higher of what is held and what is in the file. One that cannot be read is no reason to forget it: raises
        `Fault(FILE_UNREADABLE)`."""
        mine = Floor(held.number, held.digest) if held else Floor()
        if not self._floor_file.exists():
            return mine
        raw = read_bounded(self._floor_file, _MAX_FLOOR_BYTES)
        kept = _read_floor(Fields.from_json(raw, FLOOR, Reason.FILE_UNREADABLE, max_bytes=_MAX_FLOOR_BYTES))
        return kept if kept.number > mine.number else mine


_NO_POLICY = CompiledPolicy("", b"", {}, {}, ())


def _check_number(revision: SignedRevision, bundle: NodeBundle, floor: Floor) -> None:
    if revision.number != bundle.numbers.policy:
        raise Fault(Reason.MESSAGE_MALFORMED, "the archive is of another revision than stated", field="bundle.numbers")
    if revision.number == floor.number and revision.digest != floor.digest:
        raise Fault(Reason.REVISION_DOWNGRADE, f"number {revision.number} was another revision before", field="number")


def _read_floor(fields: Fields) -> Floor:
    floor = Floor(fields.integer("number"), fields.text("digest", max_length=64))
    fields.finish()
    return floor


def _spki(pem: bytes) -> bytes:
    """The key in one layout of its PEM. Raises `Fault(REVISION_SIGNATURE)`."""
    return public_pem(parse_verifying_key(pem))
