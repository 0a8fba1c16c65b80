"""Every certificate that was ever signed, and some that were only going to be.

A certificate's row goes RESERVED → ISSUED, or RESERVED → ABANDONED. RESERVED holds the exact bytes to be signed and is
committed before the CA's key is used: whatever stops the process, no signature exists without its row. What is
ABANDONED was never handed out, and never can be: the step to ISSUED starts from RESERVED alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import bindparam, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from foundation.faults import Fault
from foundation.identifiers import SpiffeId
from foundation.reasons import Reason
from foundation.storage.connection import Connection
from foundation.storage.statement import Statement
from pki.books import Books, Work
from pki.tables import answers, certificates

RESERVATION_SECONDS = 10.0  # from reserving to recording takes milliseconds; after this, whoever reserved is gone
ANSWER_KEY_BYTES = 32
MAX_ANSWER_BYTES = 64 * 1024
MAX_PAGE = 1000
_LISTENER = "server"  # the profile that says nothing of an identity as a caller


class Step(StrEnum):
    """How far a certificate has come."""

    RESERVED = "reserved"
    ISSUED = "issued"
    ABANDONED = "abandoned"


# Made once: building a statement costs as much as running it.
_RESERVE = Statement(insert(certificates))
_KEEP = Statement(insert(answers))
_ISSUED = Statement(
    update(certificates)
    .where(certificates.c.serial == bindparam("reserved"), certificates.c.state == Step.RESERVED.value)
    .values(state=Step.ISSUED.value, certificate=bindparam("der"), issued_at=bindparam("now"))
)


@dataclass(frozen=True, slots=True)
class Certificate:
    """One row. `serial` is lower-case hex; `certificate` is DER, empty until it is issued; `tbs` is what was to be
    signed; times are seconds since the Unix epoch."""

    serial: str
    identity: SpiffeId
    profile: str
    step: Step
    tbs: bytes
    certificate: bytes
    not_before: int
    not_after: int
    reserved_at: float
    issued_at: float

    @classmethod
    def of(cls, row: Any) -> Certificate:
        return cls(
            serial=row.serial,
            identity=SpiffeId.parse(row.identity),
            profile=row.profile,
            step=Step(row.state),
            tbs=row.tbs,
            certificate=row.certificate or b"",
            not_before=row.not_before,
            not_after=row.not_after,
            reserved_at=row.reserved_at,
            issued_at=row.issued_at,
        )


class Ledger:
    """Certificates by serial and by identity, and the answers that a client may ask for again."""

    def __init__(self, books: Books) -> None:
        self._books = books

    async def certificate(self, serial: str) -> Certificate:
        """Raises `Fault(NOT_FOUND)`."""
        async with self._books.reading() as connection:
            return await read_certificate(connection, serial)

    async def page(
        self, identity: SpiffeId | None = None, *, after: str = "", limit: int = 100
    ) -> tuple[Certificate, ...]:
        """At most `limit` (1 to 1000) certificates in the order of their serials, behind the serial `after`; those of
        one identity or of all."""
        query = select(certificates).where(certificates.c.serial > after).order_by(certificates.c.serial)
        if identity is not None:
            query = query.where(certificates.c.identity == str(identity))
        async with self._books.reading() as connection:
            rows = await connection.execute(query.limit(max(1, min(limit, MAX_PAGE))))
            return tuple(Certificate.of(row) for row in rows)

    async def issued_after(self, identity: SpiffeId, serial: str) -> int:
        """How many certificates this identity was issued as a caller since that of `serial`. Raises
        `Fault(NOT_FOUND)`."""
        async with self._books.reading() as connection:
            since = (await read_certificate(connection, serial)).issued_at
            query = select(func.count()).where(
                certificates.c.identity == str(identity),
                certificates.c.state == Step.ISSUED.value,
                certificates.c.profile != _LISTENER,
                certificates.c.issued_at > since,
            )
            return int(await connection.scalar(query) or 0)

    async def recall(self, answer_key: bytes) -> bytes | None:
        """What was answered under this key, while its certificate lives."""
        now = self._books.clock.now()
        query = select(answers.c.body).where(answers.c.answer_key == answer_key, answers.c.expires_at > now)
        async with self._books.reading() as connection:
            body: bytes | None = await connection.scalar(query)
        return body

    async def tidy(self) -> int:
        """Abandon the reservations of processes that are gone, and drop answers whose certificates have ended. Returns
        the number of reservations. Call it at the start and now and then."""
        async with self._books.writing() as work:
            await work.connection.execute(delete(answers).where(answers.c.expires_at <= work.now))
            stale = await work.connection.execute(
                update(certificates)
                .where(certificates.c.state == Step.RESERVED.value)
                .where(certificates.c.reserved_at < work.now - RESERVATION_SECONDS)
                .values(state=Step.ABANDONED.value)
                .returning(certificates.c.serial, certificates.c.identity)
            )
            gone = stale.all()
            for row in gone:
                work.tell("certificate.abandoned", "authority", row.identity, serial=row.serial)
            return len(gone)


async def read_certificate(connection: Connection, serial: str) -> Certificate:
    """Raises `Fault(NOT_FOUND)`."""
    row = (await connection.execute(select(certificates).where(certificates.c.serial == serial))).first()
    if row is None:
        raise Fault(Reason.NOT_FOUND, "there is no certificate of this serial", field="serial")
    return Certificate.of(row)


async def reserve(work: Work, reserved: Certificate) -> None:
    """Put what is going to be signed on record. Raises `Fault(SERIAL_CONFLICT)`."""
    row = {
        "serial": reserved.serial,
        "identity": str(reserved.identity),
        "profile": reserved.profile,
        "state": Step.RESERVED.value,
        "tbs": reserved.tbs,
        "not_before": reserved.not_before,
        "not_after": reserved.not_after,
        "reserved_at": work.now,
        "issued_at": 0.0,
    }
    try:
        await work.connection.run(_RESERVE, row)
    except IntegrityError:
        raise Fault(Reason.SERIAL_CONFLICT, field="serial") from None


async def mark_issued(work: Work, serial: str, certificate: bytes) -> None:
    """RESERVED → ISSUED. Raises `Fault(CONFLICT)` when it was abandoned in between."""
    row = {"reserved": serial, "der": certificate, "now": work.now}
    if (await work.connection.run(_ISSUED, row)).rowcount != 1:
        raise Fault(Reason.CONFLICT, "the reservation was given up; begin again", field="serial")


async def mark_abandoned(work: Work, serial: str) -> None:
    """RESERVED → ABANDONED; nothing when it is no longer reserved."""
    await work.connection.execute(
        update(certificates)
        .where(certificates.c.serial == serial, certificates.c.state == Step.RESERVED.value)
        .values(state=Step.ABANDONED.value)
    )


async def keep_answer(work: Work, answer_key: bytes, body: bytes, expires_at: int) -> None:
    """Keep an answer until `expires_at`. Raises `Fault(CONFLICT)`."""
    if len(answer_key) != ANSWER_KEY_BYTES or len(body) > MAX_ANSWER_BYTES:
        raise Fault(Reason.MESSAGE_TOO_LARGE, "an answer is kept by a SHA-256, at most 64 KiB of it")
    try:
        row = {"answer_key": answer_key, "body": body, "expires_at": expires_at}
        await work.connection.run(_KEEP, row)
    except IntegrityError:
        raise Fault(Reason.CONFLICT, "this message was answered already", field="answer_key") from None
