"""What the database does on every backend: one writer at a time, rollback, faults. SQLite's own files are in
tests/foundation/test_sqlite.py."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Float,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    bindparam,
    func,
    insert,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.exc import IntegrityError

from foundation.faults import Fault
from foundation.reasons import Reason
from foundation.storage.database import Database
from foundation.storage.settings import StorageSettings
from foundation.storage.statement import Statement

tables = MetaData()
counter = Table("counter", tables, Column("id", Integer, primary_key=True), Column("value", Integer, nullable=False))
things = Table(
    "things",
    tables,
    Column("name", String(16), primary_key=True),
    Column("labels", JSON, nullable=False),
    Column("digest", LargeBinary(32), nullable=True, unique=True),
    Column("until", Float, nullable=False),
    Column("count", BigInteger, nullable=False, server_default="0"),
)
ADD = Statement(insert(things))
FIND = Statement(
    select(things).where(or_(things.c.name == bindparam("wanted"), things.c.digest == bindparam("digest")))
)
CHANGE = Statement(update(things).where(things.c.name == bindparam("wanted")))
RAISE = Statement(update(things).values(count=things.c.count + 1).returning(things.c.name, things.c.count))
LABELS = {"site": "o'brien", "n": [1, None, True]}


pytestmark = pytest.mark.every_storage


@pytest.fixture
def where(storage: str) -> StorageSettings:
    """The settings of an empty database."""
    return StorageSettings(storage)


@pytest.fixture
async def database(where: StorageSettings) -> AsyncIterator[Database]:
    opened = await Database.open(where)
    async with opened.transaction() as connection:
        await connection.run_sync(tables.create_all)
        await connection.execute(insert(counter).values(id=1, value=0))
    yield opened
    await opened.close()


async def value(database: Database) -> int:
    async with database.reading() as connection:
        return (await connection.execute(select(counter.c.value))).scalar_one()


async def raise_by_one(database: Database) -> None:
    async with database.transaction() as connection:
        before = (await connection.execute(select(counter.c.value))).scalar_one()
        await asyncio.sleep(0)
        await connection.execute(update(counter).values(value=before + 1))


async def test_read_compare_write_loses_no_update(database: Database) -> None:
    await asyncio.gather(*(raise_by_one(database) for _ in range(50)))
    assert await value(database) == 50


async def test_two_processes_views_lose_no_update(database: Database, where: StorageSettings) -> None:
    other = await Database.open(where)
    try:
        await asyncio.gather(*(raise_by_one(each) for _ in range(20) for each in (database, other)))
    finally:
        await other.close()
    assert await value(database) == 40


async def test_an_exception_rolls_back(database: Database) -> None:
    async def write_and_fail() -> None:
        async with database.transaction() as connection:
            await connection.execute(update(counter).values(value=7))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await write_and_fail()
    assert await value(database) == 0


async def test_cancellation_rolls_back_and_frees_the_writer(database: Database) -> None:
    inside = asyncio.Event()

    async def hang() -> None:
        async with database.transaction() as connection:
            await connection.execute(update(counter).values(value=7))
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(hang())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await raise_by_one(database)
    assert await value(database) == 1


async def test_a_reader_sees_one_state_beside_a_writer(database: Database) -> None:
    async with database.reading() as connection:
        before = (await connection.execute(select(counter.c.value))).scalar_one()
        await raise_by_one(database)
        assert (await connection.execute(select(counter.c.value))).scalar_one() == before
    assert await value(database) == before + 1


async def test_a_broken_constraint_is_the_callers(database: Database) -> None:
    with pytest.raises(IntegrityError):
        async with database.transaction() as connection:
            await connection.execute(insert(counter).values(id=1, value=1))


async def test_statements_made_once_write_and_read_what_others_do(database: Database) -> None:
    thing = {"name": "a", "labels": LABELS, "digest": b"\0\xff", "until": 1.5}
    async with database.transaction() as connection:
        assert (await connection.run(ADD, thing)).rowcount == 1
        await connection.run(ADD, thing | {"name": "b", "labels": {}, "digest": None, "count": 2**40})
    async with database.reading() as connection:
        for wanted in ({"wanted": "a", "digest": None}, {"wanted": "-", "digest": b"\0\xff"}):
            (found,) = await connection.run(FIND, wanted)
            (other,) = await connection.execute(FIND.clause, wanted)
            assert (found.name, found.labels, found.digest, found.until, found.count) == (*thing.values(), 0)
            assert [type(value) for value in found] == [type(value) for value in other]
        row = (await connection.run(FIND, {"wanted": "b", "digest": None})).first()
        assert (row.labels, row.digest, row.count) == ({}, None, 2**40)
        assert (await connection.run(FIND, {"wanted": "c", "digest": None})).first() is None
        assert (await connection.run(FIND, {"wanted": "c", "digest": None})).all() == []


async def test_statements_made_once_change_what_is_named(database: Database) -> None:
    async with database.transaction() as connection:
        for name in ("a", "b"):
            await connection.run(ADD, {"name": name, "labels": LABELS, "digest": None, "until": 0.0})
        assert (await connection.run(CHANGE, {"wanted": "a", "until": 7.0, "labels": {}})).rowcount == 1
        assert (await connection.run(CHANGE, {"wanted": "c", "until": 7.0})).rowcount == 0
        assert {row.name: row.count for row in await connection.run(RAISE, {})} == {"a": 1, "b": 1}
        found = {row.name: (row.until, row.labels) for row in await connection.execute(select(things))}
    assert found == {"a": (7.0, {}), "b": (0.0, LABELS)}


async def test_a_constraint_that_a_statement_made_once_breaks_is_the_callers(database: Database) -> None:
    thing = {"name": "hush", "labels": {}, "digest": None, "until": 0.0}

    async def write_twice() -> None:
        async with database.transaction() as connection:
            await connection.run(ADD, thing)
            await connection.run(ADD, thing)

    with pytest.raises(IntegrityError) as caught:
        await write_twice()
    assert "hush" not in str(caught.value)
    async with database.reading() as connection:
        assert await connection.scalar(select(func.count()).select_from(things)) == 0


async def test_a_drivers_failure_is_a_fault_without_parameters(database: Database) -> None:
    with pytest.raises(Fault) as caught:
        async with database.transaction() as connection:
            await connection.execute(text("INSERT INTO nowhere VALUES (:it)"), {"it": "hush"})
    assert caught.value.reason is Reason.STORAGE_FAILED
    assert "hush" not in str(caught.value.__cause__) + caught.value.internal


async def test_a_transaction_inside_another_is_refused_in_bounded_time(where: StorageSettings) -> None:
    database = await Database.open(replace(where, wait=1.0))
    try:
        async with database.transaction():
            with pytest.raises(Fault) as caught:
                await raise_by_one(database)
    finally:
        await database.close()
    assert caught.value.reason is Reason.STORAGE_FAILED


async def test_migrating_twice_changes_nothing(database: Database) -> None:
    await database.migrate()
    await database.migrate()
    assert await value(database) == 0
