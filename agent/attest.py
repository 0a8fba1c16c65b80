"""Continuous re-attestation from the node's side: a fresh quote an interval, ahead of time, over the nonce that the
answer before carried (foundation/wire/reattestation.py).

Laws held here:
- a round is one message; a node that has no nonce, or one too old to prove anything of now, asks for one first;
- after a refusal nothing of the round before counts: the next one asks, and sends its logs whole;
- what the authority keeps refusing is tried again, slower and by lot, for ever: only it knows when it is over.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from agent.channel import Channel
from agent.evidence import read_event_log
from agent.keys import client_context, stored_key, telling_why
from agent.runtime_log import Position, Reading, read_until, start
from agent.settings import Address, AgentSettings
from agent.store import Identity, NodeStore
from agent.tpm import Tpm
from foundation.clock import Clock
from foundation.faults import Fault
from foundation.fields import Fields
from foundation.reasons import Reason
from foundation.wire.measurements import RUNTIME_PCR
from foundation.wire.reattestation import PATH, Next, Push, qualifying_data

FIRST_PAUSE_SECONDS = 1.0
UNKNOWN_INTERVAL_SECONDS = 60.0  # before an authority has said its own
_AHEAD = 0.25  # a push goes out up to this share of the interval early, by lot
_STALE_INTERVALS = 2
_QUOTE_ATTEMPTS = 3
# The round before is not where the authority takes it to be: another round mends that.
_BEGIN_AGAIN = frozenset(
    {
        Reason.ATTEST_NONCE,
        Reason.CERTIFICATE_SUPERSEDED,
        Reason.EVIDENCE_INCOMPLETE,
        Reason.MEASUREMENTS_MISMATCH,
        Reason.QUOTE_SELECTION,
    }
)
_LATER = (429, 503)  # rate limited, overloaded, not reached: the nonce that we hold is still good
_log = logging.getLogger("sallyport.agent.attest")


@dataclass(frozen=True, slots=True)
class AttestationSettings:
    """Section `[agent.reattestation]`. `measurements` is the kernel's runtime log; it may be missing."""

    measurements: Path = Path("/sys/kernel/security/ima/binary_runtime_measurements")

    @classmethod
    def parse(cls, fields: Fields) -> AttestationSettings:
        """Raises `Fault(SETTING_INVALID | SETTING_UNKNOWN)`."""
        settings = cls(Path(fields.text("measurements", str(cls().measurements))))
        fields.finish()
        return settings


@dataclass(frozen=True, slots=True)
class _Accepted:
    """What the authority took in the last round."""

    firmware: dict[int, bytes]
    runtime: Position


class Attester:
    """Make one and keep `run` running. `draw` gives a number from [0, 1)."""

    def __init__(
        self,
        settings: AgentSettings,
        attestation: AttestationSettings,
        store: NodeStore,
        tpm: Tpm,
        clock: Clock,
        draw: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._measurements = attestation.measurements
        self._store = store
        self._tpm = tpm
        self._clock = clock
        self._draw = draw
        self._next: Next | None = None
        self._received = 0.0
        self._accepted: _Accepted | None = None
        self._pause = FIRST_PAUSE_SECONDS
        self.attested_until: int | None = None
        """Seconds since the Unix epoch, by the authority's clock; None before the first round that passed."""

    async def run(self) -> None:
        """Push until cancelled."""
        while True:
            await self._clock.sleep(await self._round())

    async def push(self) -> Next:
        """One round now, with one more where the authority wants it from the start. Raises the authority's `Refusal`,
        and `Fault`: `NOT_ENROLLED`, `SERVER_UNTRUSTED`, `SERVER_UNREACHABLE`, `TPM_UNAVAILABLE`, `TLS_KEY_UNUSABLE`,
        `FILE_UNREADABLE`, `MESSAGE_TOO_LARGE`."""
        try:
            answer = await asyncio.to_thread(self._push)
        except Fault as fault:
            if fault.reason not in _BEGIN_AGAIN:
                raise
            _log.info("beginning again", extra={"why": fault.reason.code})
            answer = await asyncio.to_thread(self._push)
        self.attested_until = answer.attested_until
        return answer

    async def _round(self) -> float:
        """Seconds to wait after one round."""
        try:
            answer = await self.push()
        except Fault as fault:
            interval = self._next.interval if self._next else UNKNOWN_INTERVAL_SECONDS
            pause, self._pause = self._pause, min(self._pause * 2, interval)
            _log.warning("not attested", extra={"why": str(fault), "again_in": pause})
            return pause * (1 - self._draw() / 2)
        self._pause = FIRST_PAUSE_SECONDS
        return answer.interval * (1 - _AHEAD * self._draw())

    # --- off the event loop ---

    def _push(self) -> Next:
        identity = self._store.identity()
        key = stored_key(identity.key, self._tpm)
        channel = Channel(_address(self._settings), client_context(identity, key), self._settings.timeout)
        # Closed after each round: ten thousand connections that wait for a minute would be the authority's to hold.
        with closing(channel), telling_why(key):
            try:
                return self._exchange(channel, identity)
            except Fault as fault:
                if fault.reason.status not in _LATER:
                    self._next, self._accepted = None, None
                raise

    def _exchange(self, channel: Channel, identity: Identity) -> Next:
        held = self._next
        if held is None or self._clock.monotonic() - self._received > _STALE_INTERVALS * held.interval:
            held = self._send(channel, Push())
        message, accepted = self._evidence(identity, held)
        answer = self._send(channel, message)
        self._accepted = accepted
        return answer

    def _send(self, channel: Channel, message: Push) -> Next:
        self._next = answer = Next.parse(channel.post(PATH, message.encode()))
        self._received = self._clock.monotonic()
        return answer

    def _evidence(self, identity: Identity, asked: Next) -> tuple[Push, _Accepted]:
        """What is proven, and what is accepted if it passes. Once is enough but for a log that lags."""
        qualifying = _qualifying(identity, asked.nonce)
        for _attempt in range(_QUOTE_ATTEMPTS):
            found = self._quote(asked, qualifying)
            if found is not None:
                return found
        detail = "the log does not come to the quoted PCR 10"
        raise Fault(Reason.MEASUREMENTS_MISMATCH, detail, field=str(self._measurements))

    def _quote(self, asked: Next, qualifying: bytes) -> tuple[Push, _Accepted] | None:
        quoted, values = self._tpm.quote(asked.pcrs, qualifying)
        firmware = dict(zip(asked.pcrs.indices, values, strict=True))
        runtime = firmware.pop(RUNTIME_PCR, b"") if asked.measured else b""
        is_known = self._accepted is not None and self._accepted.firmware == firmware
        reading = self._read(asked, runtime, whole=not is_known)
        if reading is None:
            return None
        event_log = b"" if is_known else read_event_log(self._settings.event_log)
        news = (event_log, reading.since.count, reading.entries)
        return Push(quoted.attest, quoted.signature, values, *news), _Accepted(firmware, reading.until)

    def _read(self, asked: Next, pcr_10: bytes, *, whole: bool) -> Reading | None:
        """The entries that are news, or all of them; None where the log does not come to `pcr_10`."""
        since = start(len(pcr_10))
        if not asked.measured:
            return Reading(since, b"", since)
        if self._accepted is not None and self._accepted.runtime.count and not whole:
            since = self._accepted.runtime
        return read_until(self._measurements, since, asked.pcrs.bank, pcr_10)


def _qualifying(identity: Identity, nonce: bytes) -> bytes:
    serial = format(x509.load_der_x509_certificate(identity.issued.chain[0]).serial_number, "x")
    return qualifying_data(identity.issued.spiffe_id, serial, hashlib.sha256(identity.root).digest(), nonce)


def _address(settings: AgentSettings) -> Address:
    if settings.renewal is None:
        raise Fault(Reason.SETTING_INVALID, "say where the authority's API is, as host:port", field="agent.renewal")
    return settings.renewal
