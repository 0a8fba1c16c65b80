"""Who belongs to the fleet: every identity's entry, and what may be done to it.

Each method is one transaction: read, judged by `pki.entries`, written with its number, audited before the commit. The
functions at the end are the same steps for a transaction that does more, such as issuing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, bindparam, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from foundation.faults import Fault
from foundation.identifiers import Kind, SpiffeId
from foundation.identity import AttestationClass, Renewal, State, Verdict
from foundation.reasons import Reason
from foundation.storage.connection import Connection
from foundation.storage.statement import Statement
from pki.books import Books, Part, Work
from pki.entries import Attested, Entry, Expected, posture_changes
from pki.tables import identities

MAX_PAGE = 1000

# Which numbers a change takes: a fact of the record, a fact of the posture (which raises the epoch too), a deadline.
FACT = (Part.INVENTORY,)
POSTURE = (Part.POSTURES, Part.DEADLINES, Part.INVENTORY)
DEADLINE = (Part.DEADLINES,)
_NUMBERED = {
    Part.INVENTORY: "inventory_number",
    Part.POSTURES: "posture_number",
    Part.DEADLINES: "deadline_number",
}

# Made once: building a statement costs as much as running it.
_ONE = Statement(select(identities).where(identities.c.id == bindparam("wanted")))
_BY_EK = Statement(select(identities).where(identities.c.ek_sha256 == bindparam("ek")))
_CLAIM = Statement(
    select(identities).where(or_(identities.c.id == bindparam("wanted"), identities.c.ek_sha256 == bindparam("ek")))
)
_SWAP = Statement(
    update(identities).where(identities.c.id == bindparam("wanted"), identities.c.epoch == bindparam("seen"))
)


@dataclass(frozen=True, slots=True)
class Filter:
    """What a listing is narrowed to; None and empty mean anything."""

    kind: Kind | None = None
    state: State | None = None
    tier: int | None = None
    region: str = ""
    site: str = ""
    segment: str = ""


@dataclass(frozen=True, slots=True)
class Description:
    """New values for what an operator may say of an identity; None leaves a field as it is."""

    roles: tuple[str, ...] | None = None
    tier: int | None = None
    region: str | None = None
    site: str | None = None
    segment: str | None = None
    labels: Mapping[str, str] | None = None

    def changes(self) -> dict[str, Any]:
        given = {name: getattr(self, name) for name in self.__slots__ if getattr(self, name) is not None}
        if "roles" in given:
            given["roles"] = sorted(set(given["roles"]))
        if "labels" in given:
            given["labels"] = dict(given["labels"])
        return given


class Inventory:
    """The fleet's entries. `actor` is who acts, as the audit log shall name them."""

    def __init__(self, books: Books) -> None:
        self._books = books

    async def get(self, identity: SpiffeId) -> Entry:
        """Raises `Fault(INVENTORY_UNKNOWN)`."""
        async with self._books.reading() as connection:
            return await read_entry(connection, identity)

    async def find_by_ek(self, ek_sha256: bytes) -> Entry | None:
        """The entry that this TPM is bound to, or was announced for."""
        async with self._books.reading() as connection:
            row = (await connection.run(_BY_EK, {"ek": ek_sha256})).first()
        return Entry.of(row) if row else None

    async def claim(self, identity: SpiffeId, ek_sha256: bytes) -> tuple[Entry, SpiffeId | None]:
        """The entry of `identity`, and whose the TPM of `ek_sha256` is so far. Raises `Fault(INVENTORY_UNKNOWN)`."""
        async with self._books.reading() as connection:
            return await read_claim(connection, identity, ek_sha256)

    async def page(self, wanted: Filter | None = None, *, after: str = "", limit: int = 100) -> tuple[Entry, ...]:
        """At most `limit` (1 to 1000) entries in the order of their SPIFFE IDs, behind the ID `after`."""
        query = _narrow(select(identities), wanted or Filter()).where(identities.c.id > after)
        query = query.order_by(identities.c.id).limit(max(1, min(limit, MAX_PAGE)))
        async with self._books.reading() as connection:
            return tuple(Entry.of(row) for row in await connection.execute(query))

    async def add(self, expected: Expected, actor: str) -> Entry:
        """Expect one identity. Raises `Fault(CONFLICT)` when its name is taken and `Fault(EK_TAKEN)`."""
        return (await self.add_all((expected,), actor))[0]

    async def add_all(self, expected: tuple[Expected, ...], actor: str) -> tuple[Entry, ...]:
        """Expect all of them or, when one cannot be, none. Raises as `add`; `field` is `line N`, counted from 1."""
        async with self._books.writing() as work:
            return tuple([await add_entry(work, item, actor, line) for line, item in enumerate(expected, 1)])

    async def describe(self, identity: SpiffeId, description: Description, actor: str) -> Entry:
        """Change what an operator says of an identity: roles, tier, place, labels."""
        async with self._books.writing() as work:
            entry = await read_entry(work.connection, identity)
            changes = description.changes()
            if changes:
                work.tell("identity.described", actor, identity, **changes)
                await write(work, entry, FACT, **changes)
            return await read_entry(work.connection, identity)

    async def latch_failure(self, identity: SpiffeId, reason: Reason, actor: str) -> Entry:
        """A failed attestation. The first one stays until `clear_failure`, whatever the node proves later."""
        async with self._books.writing() as work:
            entry = await read_entry(work.connection, identity)
            work.tell("attestation.failed", actor, identity, reason=reason.code, first=not entry.latched)
            if not entry.latched:
                failed = {"latched": reason.code, "verdict": Verdict.FAILED.value, "attested_until": 0.0}
                await write(work, entry, POSTURE, **failed)
            return await read_entry(work.connection, identity)

    async def clear_failure(self, identity: SpiffeId, actor: str) -> Entry:
        """An operator inspected the node: the failure is over and its counters begin anew. The node has to attest
        before its posture passes. Raises `Fault(CONFLICT)` when there is no failure."""
        async with self._books.writing() as work:
            entry = await read_entry(work.connection, identity)
            if not entry.latched:
                raise Fault(Reason.CONFLICT, "there is no failure to clear", field="identity")
            work.tell("attestation.cleared", actor, identity, cleared=entry.latched)
            anew = {"latched": "", "tpm_reset": None, "tpm_restart": None, "tpm_clock": None}
            await write(work, entry, POSTURE, **anew)
            return await read_entry(work.connection, identity)

    async def quarantine(self, identity: SpiffeId, actor: str, note: str = "") -> Entry:
        """Shut an identity out until `release`; its certificates stay valid but no gateway lets it in."""
        return await self._move(identity, (State.ACTIVE, State.EXPECTED), State.QUARANTINED, actor, note)

    async def release(self, identity: SpiffeId, actor: str, note: str = "") -> Entry:
        """End a quarantine."""
        entry = await self.get(identity)
        back = State.ACTIVE if entry.current_serial else State.EXPECTED
        return await self._move(identity, (State.QUARANTINED,), back, actor, note)

    async def _move(self, identity: SpiffeId, since: tuple[State, ...], to: State, actor: str, note: str) -> Entry:
        async with self._books.writing() as work:
            entry = await read_entry(work.connection, identity)
            if entry.record.state not in since:
                raise Fault(Reason.INVENTORY_STATE, f"the identity is {entry.record.state}", field="identity")
            work.tell(f"identity.{to.value}", actor, identity, note=note)
            await write(work, entry, FACT, state=to.value)
            return await read_entry(work.connection, identity)


async def read_entry(connection: Connection, identity: SpiffeId) -> Entry:
    """Raises `Fault(INVENTORY_UNKNOWN)`."""
    row = (await connection.run(_ONE, {"wanted": str(identity)})).first()
    if row is None:
        raise Fault(Reason.INVENTORY_UNKNOWN, field="identity", internal=str(identity))
    return Entry.of(row)


async def read_claim(connection: Connection, identity: SpiffeId, ek_sha256: bytes) -> tuple[Entry, SpiffeId | None]:
    """The entry of `identity`, and whose the TPM of `ek_sha256` is so far. Raises `Fault(INVENTORY_UNKNOWN)`."""
    rows = await connection.run(_CLAIM, {"wanted": str(identity), "ek": ek_sha256 or None})
    entries = [Entry.of(row) for row in rows]
    entry = next((one for one in entries if one.id == identity), None)
    if entry is None:
        raise Fault(Reason.INVENTORY_UNKNOWN, field="identity", internal=str(identity))
    return entry, next((one.id for one in entries if ek_sha256 and one.ek_sha256 == ek_sha256), None)


async def write_posture(work: Work, entry: Entry, attested: Attested, actor: str) -> None:
    """Record a checked attestation that changes facts."""
    work.tell("posture.changed", actor, entry.id, attestation=attested.attestation.value, verdict="passed")
    await write(work, entry, POSTURE, **_attested_columns(attested))


async def write_certified(
    work: Work, entry: Entry, serial: str, attested: Attested | None, actor: str, renewal: Renewal | None = None
) -> None:
    """Record that the identity is active with the certificate of `serial`, and what was attested for it; `renewal` when
    it is one by the AK on record."""
    columns = {
        "state": State.ACTIVE.value,
        "current_serial": serial,
        "renewed_serial": renewal.old if renewal else "",
        "renewed_until": int(renewal.until) if renewal else 0,
    }
    if attested is None:
        await write(work, entry, FACT, **columns)
        return
    changed = posture_changes(entry, attested)
    if changed:
        work.tell("posture.changed", actor, entry.id, attestation=attested.attestation.value, verdict="passed")
    await write(work, entry, POSTURE if changed else FACT + DEADLINE, **columns, **_attested_columns(attested))


async def write(work: Work, entry: Entry, parts: tuple[Part, ...], **changes: Any) -> None:
    """Write `changes` with the next number of each of `parts`. The epoch rises with the inventory's number. Raises
    `Fault(CONFLICT | EK_TAKEN)`."""
    taken = await work.take_numbers(*parts) if parts else {}
    columns = {_NUMBERED[part]: number for part, number in taken.items()} | changes | {"updated_at": work.now}
    if Part.INVENTORY in taken:
        columns["epoch"] = entry.record.epoch + 1
    # The epoch was read in this transaction, the only one that writes; comparing it is the second lock on the door.
    which = {"wanted": str(entry.id), "seen": entry.record.epoch}
    try:
        swapped = (await work.connection.run(_SWAP, columns | which)).rowcount
    except IntegrityError:
        raise Fault(Reason.EK_TAKEN, field="ek") from None
    if swapped != 1:
        raise Fault(Reason.CONFLICT, "the entry has changed", field="identity")


async def add_entry(work: Work, expected: Expected, actor: str, line: int = 1) -> Entry:
    """Expect one identity. Raises as `Inventory.add_all`."""
    field = f"line {line}"
    if await is_known(work.connection, expected.id):
        raise Fault(Reason.CONFLICT, f"{expected.id} is in the inventory already", field=field)
    if expected.ek_sha256 and await _holder(work.connection, expected.ek_sha256):
        raise Fault(Reason.EK_TAKEN, f"the TPM of {expected.id} belongs to another identity", field=field)
    taken = await work.take_numbers(Part.INVENTORY)
    await work.connection.execute(insert(identities), _expected_columns(work, expected, taken))
    work.tell("identity.expected", actor, expected.id, tier=expected.tier, roles=list(expected.roles))
    return await read_entry(work.connection, expected.id)


async def is_known(connection: Connection, identity: SpiffeId) -> bool:
    """Whether the inventory has an entry of this name."""
    return (
        await connection.execute(select(identities.c.id).where(identities.c.id == str(identity)))
    ).first() is not None


async def _holder(connection: Connection, ek_sha256: bytes) -> SpiffeId | None:
    row = (await connection.run(_BY_EK, {"ek": ek_sha256})).first()
    return SpiffeId.parse(row.id) if row else None


def _narrow(query: Select[Any], wanted: Filter) -> Select[Any]:
    for name in wanted.__slots__:
        value = getattr(wanted, name)
        if value is not None and value != "":
            query = query.where(identities.c[name] == value)
    return query


def _attested_columns(attested: Attested) -> dict[str, Any]:
    columns: dict[str, Any] = {
        "attestation": attested.attestation.value,
        "verdict": Verdict.PASSED.value,
        "attested_until": attested.until,
        "ak_public": attested.ak_public,
        "ak_name": attested.ak_name,
    }
    if attested.ek_sha256:
        columns["ek_sha256"] = attested.ek_sha256
    if attested.counters is not None:
        reset, restart, clock = attested.counters
        columns |= {"tpm_reset": reset, "tpm_restart": restart, "tpm_clock": clock}
    return columns


def _expected_columns(work: Work, expected: Expected, taken: Mapping[Part, int]) -> dict[str, Any]:
    return {
        "id": str(expected.id),
        "kind": expected.id.kind.value,
        "state": State.EXPECTED.value,
        "epoch": 1,
        "roles": list(expected.roles),
        "tier": expected.tier,
        "region": expected.region,
        "site": expected.site,
        "segment": expected.segment,
        "labels": dict(expected.labels),
        "versions": {},
        "ek_sha256": expected.ek_sha256 or None,
        "ak_public": b"",
        "ak_name": b"",
        "attestation": AttestationClass.NONE.value,
        "verdict": Verdict.FAILED.value,  # nothing was proven yet
        "latched": "",
        "attested_until": 0.0,
        "current_serial": "",
        "inventory_number": taken[Part.INVENTORY],
        "posture_number": 0,
        "deadline_number": 0,
        "created_at": work.now,
        "updated_at": work.now,
    }
