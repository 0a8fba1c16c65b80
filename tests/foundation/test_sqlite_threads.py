"""The connection that changes threads only for what may wait: same results, same order, also when callers give up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import text

from foundation.storage.database import Database
from foundation.storage.settings import StorageSettings
from foundation.storage.sqlite import SqliteConnection, connect_sqlite


@pytest.fixture
async def connection(tmp_path: Path) -> AsyncIterator[SqliteConnection]:
    made = await connect_sqlite(str(tmp_path / "t.db"), isolation_level=None)
    await made.execute("PRAGMA journal_mode=WAL")
    await made.execute("CREATE TABLE t (x INTEGER)")
    await made.create_function("thread", 0, threading.get_ident)
    assert isinstance(made, SqliteConnection)
    yield made
    await made.close()


async def _thread(connection: SqliteConnection) -> int:
    cursor = await connection.execute("SELECT thread()")
    row = await cursor.fetchone()
    assert row is not None
    return int(row[0])


async def test_statements_inside_a_transaction_stay_on_the_callers_thread(connection: SqliteConnection) -> None:
    for begin in ("BEGIN", "BEGIN IMMEDIATE"):
        await connection.execute(begin)
        assert await _thread(connection) == threading.get_ident()
        await connection.rollback()
    assert await _thread(connection) != threading.get_ident()


async def test_waiting_for_the_write_lock_leaves_the_loop_free(tmp_path: Path, connection: SqliteConnection) -> None:
    other = await connect_sqlite(str(tmp_path / "t.db"), isolation_level=None, timeout=30)
    await connection.execute("BEGIN IMMEDIATE")
    waiting = asyncio.ensure_future(other.execute("BEGIN IMMEDIATE"))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not waiting.done()
    await connection.commit()
    await waiting
    await other.rollback()
    await other.close()


async def test_a_caller_that_gave_up_leaves_no_lock_behind(tmp_path: Path) -> None:
    settings = StorageSettings(f"sqlite+aiosqlite:///{tmp_path}/t.db", connections=2, wait=5.0)
    one, two = await Database.open(settings), await Database.open(settings)
    try:
        async with one.transaction() as connection:
            await connection.execute(text("CREATE TABLE t (x INTEGER)"))
            for _ in range(3):
                giving_up = asyncio.ensure_future(_write(two))
                for _ in range(20):
                    await asyncio.sleep(0)
                giving_up.cancel()
        async with asyncio.timeout(10):
            await _write(two)
            await _write(one)
    finally:
        await one.close()
        await two.close()


async def _write(database: Database) -> None:
    async with database.transaction() as connection:
        await connection.execute(text("INSERT INTO t VALUES (1)"))
