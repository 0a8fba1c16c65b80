"""What is remembered between the two messages: one session, sixty seconds at most, taken once.

Sessions live in hot state: losing them all makes every node begin again, and lets nobody in. They hold what a TPM has
to prove that it can read, and hot state may be another machine: so they are sealed (AES-256-GCM, NIST SP 800-38D), each
to its ID, by a key that only the authority has. Who reads hot state learns nothing, and who writes it begins nothing.
"""

from __future__ import annotations

import json
import secrets
import zlib
from dataclasses import dataclass, field
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from foundation.faults import Fault
from foundation.hotstate import HotState
from foundation.identifiers import SpiffeId
from foundation.reasons import Reason
from foundation.wire.enrolment import NONCE_BYTES, SESSION_BYTES
from pki.entries import Counters
from pki.tokens import TokenUse

SECRET_BYTES = 32
KEY_BYTES = 32
_SEAL_NONCE_BYTES = 12  # SP 800-38D §8.2.2: random, for far fewer than 2^32 sessions in a key's life
_PREFIX = "enrolment/"


@dataclass(frozen=True, slots=True)
class Session:
    """One exchange under way. `first_message` is the raw BEGIN; `secret` is what the credential holds, empty where
    nothing is activated; `server_spki_sha256` tells our TLS key that answered BEGIN; `renews` is the serial (hex) of
    the certificate that asked, empty at enrolment; `counters` are those on record when it began: evidence for it was
    made after them, and perhaps before what was recorded meanwhile."""

    purpose: str
    first_message: bytes
    identity: SpiffeId
    server_spki_sha256: bytes
    nonce: bytes
    secret: bytes = field(repr=False, default=b"")
    token: TokenUse | None = None
    renews: str = ""
    counters: Counters | None = None

    def encode(self) -> bytes:
        head = {
            "purpose": self.purpose,
            "identity": str(self.identity),
            "spki": self.server_spki_sha256.hex(),
            "nonce": self.nonce.hex(),
            "secret": self.secret.hex(),
            "token": _token(self.token),
            "renews": self.renews,
            "counters": self.counters,
        }
        # Compressed, the longest message fits into one entry of hot state with room to spare: it is mostly base64.
        return json.dumps(head).encode() + b"\n" + zlib.compress(self.first_message)

    @classmethod
    def decode(cls, raw: bytes) -> Session:
        head, _, message = raw.partition(b"\n")
        value: dict[str, Any] = json.loads(head)
        return cls(
            purpose=value["purpose"],
            first_message=zlib.decompress(message),
            identity=SpiffeId.parse(value["identity"]),
            server_spki_sha256=bytes.fromhex(value["spki"]),
            nonce=bytes.fromhex(value["nonce"]),
            secret=bytes.fromhex(value["secret"]),
            token=_token_of(value["token"]),
            renews=value["renews"],
            counters=Counters(*value["counters"]) if value["counters"] else None,
        )


class Sessions:
    """Keeps sessions by their random ID."""

    def __init__(self, hot: HotState, seconds: float, key: bytes) -> None:
        """`key` (`KEY_BYTES`) is that of all authorities which share `hot`."""
        self._hot = hot
        self._seal = AESGCM(key)
        self.seconds = seconds

    async def open(self, session: Session) -> bytes:
        """The new session's ID. Raises `Fault(OVERLOADED)` when there are too many."""
        session_id = secrets.token_bytes(SESSION_BYTES)
        nonce = secrets.token_bytes(_SEAL_NONCE_BYTES)
        sealed = nonce + self._seal.encrypt(nonce, session.encode(), session_id)
        if not await self._hot.put_once(_PREFIX + session_id.hex(), sealed, self.seconds):
            raise Fault(Reason.OVERLOADED)
        return session_id

    async def take(self, session_id: bytes, purpose: str) -> Session | None:
        """The session, which is over now: whatever comes of it, it was the one attempt. None when there is none, or it
        was begun for another purpose, or not by us."""
        sealed = await self._hot.take(_PREFIX + session_id.hex())
        if sealed is None:
            return None
        try:
            raw = self._seal.decrypt(sealed[:_SEAL_NONCE_BYTES], sealed[_SEAL_NONCE_BYTES:], session_id)
        except (InvalidTag, ValueError):
            return None
        session = Session.decode(raw)
        return session if session.purpose == purpose else None


def new_nonce() -> bytes:
    return secrets.token_bytes(NONCE_BYTES)


def new_secret() -> bytes:
    return secrets.token_bytes(SECRET_BYTES)


def _token(use: TokenUse | None) -> list[Any] | None:
    return None if use is None else [use.token_id.hex(), str(use.identity), use.expires_at, use.binding.hex()]


def _token_of(value: list[Any] | None) -> TokenUse | None:
    if value is None:
        return None
    return TokenUse(bytes.fromhex(value[0]), SpiffeId.parse(value[1]), value[2], bytes.fromhex(value[3]))
