"""One-time enrolment tokens: minted for one identity, bound to one TPM, spent on one certificate.

Laws held here:
- the database holds the SHA-256 of a token's secret, and the comparison takes the same time however wrong it is;
- a token is spent in the transaction that reserves its certificate: of any number of parallel uses one gets a
  certificate, and it is free again only when that certificate was abandoned unissued;
- bound once, it serves that TPM alone.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from typing import Any

from sqlalchemy import bindparam, func, insert, or_, select, update

from foundation.faults import Fault
from foundation.identifiers import SpiffeId
from foundation.reasons import Reason
from foundation.storage.connection import Connection
from foundation.storage.statement import Statement
from foundation.wire.enrolment import Token
from pki.books import Books, Work
from pki.entries import Expected, check_enrollable
from pki.inventory import add_entry, is_known, read_entry
from pki.ledger import RESERVATION_SECONDS, Step, mark_abandoned
from pki.tables import certificates, tokens

MAX_TTL = 30 * 24 * 3600.0
_NOBODY = hashlib.sha256(b"").digest()

# Made once: building a statement costs as much as running it.
_ONE = Statement(
    select(tokens, certificates.c.state, certificates.c.reserved_at)
    .select_from(tokens.outerjoin(certificates, tokens.c.spent_on == certificates.c.serial))
    .where(tokens.c.token_id == bindparam("wanted"))
)
_BIND = Statement(
    update(tokens).where(
        tokens.c.token_id == bindparam("wanted"),
        or_(tokens.c.bound_to.is_(None), tokens.c.bound_to == bindparam("binding")),
    )
)
_SPEND = Statement(
    update(tokens).where(
        tokens.c.token_id == bindparam("wanted"),
        func.coalesce(tokens.c.spent_on, "") == bindparam("before"),
    )
)


@dataclass(frozen=True, slots=True)
class TokenUse:
    """A token whose secret was shown: which, for whom, until when. `binding` is the SHA-256 of the EK it serves (of the
    TLS key's SPKI where there is no TPM), empty while it is unbound."""

    token_id: bytes
    identity: SpiffeId
    expires_at: float
    binding: bytes


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """What may be told of a token: everything but its secret. `state` is `open`, `bound`, `spent`, `voided` or
    `expired`."""

    token_id: bytes
    identity: SpiffeId
    state: str
    minted_by: str
    minted_at: float
    expires_at: float


class Tokens:
    """Mint and check tokens. Spending one is a step of issuing."""

    def __init__(self, books: Books, root_sha256: bytes) -> None:
        self._books = books
        self._root_sha256 = root_sha256

    async def mint(self, identity: SpiffeId, ttl: float, actor: str) -> Token:
        """A token for one enrolment of `identity` within `ttl` seconds. An identity that the inventory does not know is
        expected from now on. Raises `Fault(MESSAGE_MALFORMED | INVENTORY_STATE | ATTESTATION_LATCHED)`."""
        if not 0 < ttl <= MAX_TTL:
            raise Fault(Reason.MESSAGE_MALFORMED, "a token lives up to 30 days", field="ttl")
        token = Token(self._root_sha256, secrets.token_bytes(16), secrets.token_bytes(32))
        async with self._books.writing() as work:
            if not await is_known(work.connection, identity):
                await add_entry(work, Expected(identity), actor)
            check_enrollable(await read_entry(work.connection, identity))
            work.tell("token.minted", actor, identity, token_id=token.token_id.hex(), ttl=ttl)
            await work.connection.execute(insert(tokens).values(_columns(token, identity, ttl, actor, work.now)))
        return token

    async def check(self, token: Token) -> TokenUse:
        """The token, when it may still be used by somebody. Raises `Fault(TOKEN_UNKNOWN | TOKEN_EXPIRED |
        TOKEN_USED)`."""
        async with self._books.reading() as connection:
            row = await _read(connection, token.token_id)
        known = row.secret_sha256 if row else _NOBODY
        shown = hmac.compare_digest(known, hashlib.sha256(token.secret).digest())
        ours = hmac.compare_digest(token.root_sha256, self._root_sha256)
        if row is None or not shown or not ours:
            raise Fault(Reason.TOKEN_UNKNOWN, field="token")
        _check_usable(row, self._books.clock.now())
        return _use(row)

    async def bind(self, use: TokenUse, binding: bytes) -> TokenUse:
        """Let the token serve this TPM alone from now on; again is no error. Raises `Fault(TOKEN_BOUND_ELSEWHERE)` and
        as `check`."""
        async with self._books.writing() as work:
            row = await _read(work.connection, use.token_id)
            if row is None:
                raise Fault(Reason.TOKEN_UNKNOWN, field="token")
            _check_usable(row, work.now)
            if row.bound_to is None:
                work.tell("token.bound", str(use.identity), use.identity, binding=binding.hex())
            swap = {"wanted": use.token_id, "binding": binding, "bound_to": binding}
            if (await work.connection.run(_BIND, swap)).rowcount != 1:
                raise Fault(Reason.TOKEN_BOUND_ELSEWHERE, field="token")
        return TokenUse(use.token_id, use.identity, use.expires_at, binding)

    async def page(self, *, after: bytes = b"", limit: int = 100) -> tuple[TokenRecord, ...]:
        """At most `limit` (1 to 1000) tokens in the order of their IDs, behind the ID `after`."""
        query = select(tokens).where(tokens.c.token_id > after).order_by(tokens.c.token_id)
        now = self._books.clock.now()
        async with self._books.reading() as connection:
            rows = await connection.execute(query.limit(max(1, min(limit, 1000))))
            return tuple(_record(row, now) for row in rows)

    async def void(self, identity: SpiffeId, actor: str) -> int:
        """Make every unspent token of an identity useless. Returns how many."""
        async with self._books.writing() as work:
            return await void_tokens(work, actor, identity)


async def spend_token(work: Work, use: TokenUse, serial: str) -> None:
    """Spend a token on the certificate of `serial`, in the transaction that reserves it. Raises `Fault(TOKEN_UNKNOWN |
    TOKEN_EXPIRED | TOKEN_USED | TOKEN_BOUND_ELSEWHERE)`."""
    row = await _read(work.connection, use.token_id)
    if row is None or row.identity != str(use.identity):
        raise Fault(Reason.TOKEN_UNKNOWN, field="token")
    _check_usable(row, work.now)
    if not use.binding or row.bound_to != use.binding:
        raise Fault(Reason.TOKEN_BOUND_ELSEWHERE, field="token")
    if row.spent_on is not None:
        await mark_abandoned(work, row.spent_on)  # its process is gone; if not, it finds out when it records
    swap = {"wanted": use.token_id, "before": row.spent_on or "", "spent_on": serial}
    if (await work.connection.run(_SPEND, swap)).rowcount != 1:
        raise Fault(Reason.TOKEN_USED, field="token")


async def void_tokens(work: Work, actor: str, identity: SpiffeId | None = None) -> int:
    """Make unspent tokens useless: an identity's, or everybody's. Returns how many."""
    which = update(tokens).where(tokens.c.spent_on.is_(None), tokens.c.voided == 0)
    if identity is not None:
        which = which.where(tokens.c.identity == str(identity))
    count = (await work.connection.execute(which.values(voided=1))).rowcount
    if count:
        work.tell("token.voided", actor, identity or "every identity", count=count)
    return count


def _check_usable(row: Any, now: float) -> None:
    if row.voided or (row.spent_on is not None and not _came_to_nothing(row, now)):
        raise Fault(Reason.TOKEN_USED, field="token")
    if row.expires_at <= now:
        raise Fault(Reason.TOKEN_EXPIRED, field="token")


def _came_to_nothing(row: Any, now: float) -> bool:
    late = row.reserved_at is not None and row.reserved_at < now - RESERVATION_SECONDS
    return row.state == Step.ABANDONED.value or (row.state == Step.RESERVED.value and late)


async def _read(connection: Connection, token_id: bytes) -> Any:
    """The token's row with `state` and `reserved_at` of the certificate it was spent on; None where there is none."""
    return (await connection.run(_ONE, {"wanted": token_id})).first()


def _use(row: Any) -> TokenUse:
    return TokenUse(row.token_id, SpiffeId.parse(row.identity), row.expires_at, row.bound_to or b"")


def _record(row: Any, now: float) -> TokenRecord:
    states = ((row.voided, "voided"), (row.spent_on is not None, "spent"), (row.expires_at <= now, "expired"))
    state = next((name for holds, name in states if holds), "bound" if row.bound_to else "open")
    identity = SpiffeId.parse(row.identity)
    return TokenRecord(row.token_id, identity, state, row.minted_by, row.minted_at, row.expires_at)


def _columns(token: Token, identity: SpiffeId, ttl: float, actor: str, now: float) -> dict[str, Any]:
    return {
        "token_id": token.token_id,
        "secret_sha256": hashlib.sha256(token.secret).digest(),
        "identity": str(identity),
        "minted_by": actor,
        "minted_at": now,
        "expires_at": now + ttl,
    }
