"""How far each identity's continuous re-attestation has come: the nonce that is out, and the one that was used last.

Nonces are rows, and not hot state: the next one is written in the transaction that moves the deadline, so that keeping
it costs nothing; it survives restarts, several authorities over one database see the same ones, and it is spent as the
deadline moves, or not at all. There is no key that a reader of the database could make nonces with.

Laws held here:
- a round is written only while neither the identity's epoch nor its nonce is another than the one that was judged;
- what passes at the same time is written in one transaction: one commit's wait for the disk serves all of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import bindparam, exists, insert, select, update

from foundation.faults import Fault
from foundation.identifiers import SpiffeId
from foundation.reasons import Reason
from foundation.storage.connection import Connection
from foundation.storage.statement import Statement
from pki.books import Books, Part, Work
from pki.entries import Attested, Entry, posture_changes
from pki.inventory import write_posture
from pki.tables import attestations, identities

MAX_TOGETHER = 128
GATHERING_SECONDS = 0.01
"""How long the first waits for others: a deadline that moves so much later is none the worse, and one wait for the
disk, one look of each follower, serves all that come meanwhile."""
_T = TypeVar("_T")
_Asked = tuple[Callable[[Work], Awaitable[Any]], asyncio.Future[Any]]


@dataclass(frozen=True, slots=True)
class Round:
    """The nonce that is out, and the one of the last quote that passed; both empty before the first. `*_at` are when
    they were issued, in seconds since the Unix epoch. `boot`, `measured` and `measured_pcr` are what that quote
    proved (`pki.tpm.verdict.Again`)."""

    nonce: bytes = b""
    issued_at: float = 0.0
    used_nonce: bytes = b""
    used_issued_at: float = 0.0
    boot: bytes = b""
    measured: int = 0
    measured_pcr: bytes = b""

    @classmethod
    def of(cls, row: Any) -> Round:
        """The round in a row of both tables."""
        return cls() if row.nonce is None else cls(*(getattr(row, name) for name in cls.__slots__))


# Made once: building a statement costs as much as running it.
_READ = Statement(
    select(identities, *(attestations.c[name] for name in Round.__slots__))
    .outerjoin_from(identities, attestations, attestations.c.identity == identities.c.id)
    .where(identities.c.id == bindparam("wanted"))
)
_BEGUN = Statement(
    select(attestations.c.used_issued_at).where(
        attestations.c.identity == bindparam("wanted"), attestations.c.used_issued_at > 0
    )
)
_BEGIN = Statement(insert(attestations))
_WRITE = Statement(update(attestations).where(attestations.c.identity == bindparam("wanted")))
_MOVE = Statement(
    update(identities).where(
        identities.c.id == bindparam("wanted"),
        identities.c.epoch == bindparam("seen"),
        exists().where(attestations.c.identity == bindparam("wanted"), attestations.c.nonce == bindparam("spent")),
    )
)


class Rounds:
    """The rounds of every identity that has begun them."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self._together = _Together(books)

    async def read(self, identity: SpiffeId) -> tuple[Entry, Round]:
        """The identity's entry and its round. Raises `Fault(INVENTORY_UNKNOWN)`."""
        async with self._books.reading() as connection:
            return await _read(connection, identity)

    async def have_begun(self, identity: SpiffeId) -> bool:
        """Whether a pushed quote of this identity ever passed: from then on silence ends its trust."""
        async with self._books.reading() as connection:
            return (await connection.run(_BEGUN, {"wanted": str(identity)})).first() is not None

    async def hand_out(self, identity: SpiffeId, nonce: bytes) -> None:
        """Let `nonce`, issued now, be the one that is out."""

        async def write(work: Work) -> None:
            given = {"nonce": nonce, "issued_at": work.now}
            if (await work.connection.run(_WRITE, {"wanted": str(identity)} | given)).rowcount != 1:
                await work.connection.run(_BEGIN, {"identity": str(identity)} | _values(Round()) | given)

        await self._together.write(write)

    async def move_on(self, entry: Entry, judged: Round, after: Round, attested: Attested, actor: str) -> bool:
        """Record a passed quote over the nonce of `judged`: the deadline moves, `after` is out. False when `entry` or
        its round has changed since they were read: read and judge again."""

        async def write(work: Work) -> bool:
            moves = _write_facts if posture_changes(entry, attested) else _write_deadline
            if not await moves(work, entry, judged, attested, actor):
                return False
            await work.connection.run(_WRITE, {"wanted": str(entry.id)} | _values(after))
            return True

        return await self._together.write(write)


async def _read(connection: Connection, identity: SpiffeId) -> tuple[Entry, Round]:
    row = (await connection.run(_READ, {"wanted": str(identity)})).first()
    if row is None:
        raise Fault(Reason.INVENTORY_UNKNOWN, field="identity", internal=str(identity))
    return Entry.of(row), Round.of(row)


async def _write_deadline(work: Work, entry: Entry, judged: Round, attested: Attested, _actor: str) -> bool:
    """No fact changes: no epoch rises, and nothing is audited."""
    if attested.counters is None:
        raise ValueError("a quote tells its TPM's counters")
    reset, restart, clock = attested.counters
    taken = await work.take_numbers(Part.DEADLINES)
    moved = {
        "attested_until": attested.until,
        "tpm_reset": reset,
        "tpm_restart": restart,
        "tpm_clock": clock,
        "deadline_number": taken[Part.DEADLINES],
        "updated_at": work.now,
    }
    which = {"wanted": str(entry.id), "seen": entry.record.epoch, "spent": judged.nonce}
    return (await work.connection.run(_MOVE, moved | which)).rowcount == 1


async def _write_facts(work: Work, entry: Entry, judged: Round, attested: Attested, actor: str) -> bool:
    """The verdict changes: an operator cleared a failure, and the node is well."""
    now, out = await _read(work.connection, entry.id)
    if now.record.epoch != entry.record.epoch or out.nonce != judged.nonce:
        return False
    await write_posture(work, entry, attested, actor)
    return True


def _values(state: Round) -> dict[str, Any]:
    return {name: getattr(state, name) for name in Round.__slots__}


class _Together:
    """Writes what several ask for in one transaction: whoever comes while one waits for the disk is in the next."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self._waiting: list[_Asked] = []
        self._writing: asyncio.Task[None] | None = None

    async def write(self, change: Callable[[Work], Awaitable[_T]]) -> _T:
        """What `change` gives, once it is committed. It does not raise on purpose: nobody's change is committed then.
        Raises `Fault(AUDIT_FAILED | STORAGE_FAILED)`."""
        answer: asyncio.Future[_T] = asyncio.get_running_loop().create_future()
        self._waiting.append((change, answer))
        if self._writing is None:
            self._writing = asyncio.create_task(self._write_waiting())
        return await answer

    async def _write_waiting(self) -> None:
        try:
            while self._waiting:
                await asyncio.sleep(GATHERING_SECONDS)
                await self._write_some()
        finally:
            self._writing = None

    async def _write_some(self) -> None:
        taken: list[_Asked] = []
        try:
            async with self._books.writing() as work:
                # Only now: who came while we waited for our turn is in this transaction.
                taken, self._waiting = self._waiting[:MAX_TOGETHER], self._waiting[MAX_TOGETHER:]
                given = [await change(work) for change, _ in taken]
        except BaseException as error:
            if not taken:  # nothing could be begun, for nobody
                taken, self._waiting = self._waiting, []
            for _, answer in taken:
                _fail(answer, error)
            if not isinstance(error, Exception):
                raise
            return
        for (_, answer), value in zip(taken, given, strict=True):
            if not answer.done():  # who asked may have given up
                answer.set_result(value)


def _fail(answer: asyncio.Future[Any], error: BaseException) -> None:
    if answer.done():
        return
    if isinstance(error, Exception):
        answer.set_exception(error)
    else:
        answer.cancel()
