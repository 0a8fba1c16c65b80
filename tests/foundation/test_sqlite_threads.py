"""SQLite changes threads only for what may wait: same results, same order, also when callers give up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import event, text

from foundation.faults import Fault
from foundation.reasons import Reason
from foundation.storage.database import Database
from foundation.storage.settings import StorageSettings
from foundation.storage.sqlite import SqliteBackend


def at(path: Path, *, connections: int = 2, wait: float = 5.0) -> StorageSettings:
    return StorageSettings(f"sqlite:///{path}/t.db", connections=connections, wait=wait)


@pytest.fixture
async def backend(tmp_path: Path) -> AsyncIterator[SqliteBackend]:
    made = await SqliteBackend.open(at(tmp_path))
    async with made.transaction() as connection:
        await connection.execute(text("CREATE TABLE t (x INTEGER)"))
    yield made
    await made.close()


async def test_statements_inside_a_transaction_stay_on_the_callers_thread(backend: SqliteBackend) -> None:
    seen: list[tuple[str, int]] = []

    def trace(_: object, __: object, statement: str, *___: object) -> None:
        seen.append((statement, threading.get_ident()))

    event.listen(backend._engine, "before_cursor_execute", trace)
    for begin in (backend.reading, backend.transaction):
        async with begin() as connection:
            await connection.execute(text("SELECT 1"))
            here = await connection.run_sync(lambda _: threading.get_ident())
            assert here != threading.get_ident()
    assert [thread for _, thread in seen] == [threading.get_ident()] * 2


async def test_waiting_for_the_write_lock_leaves_the_loop_free(tmp_path: Path, backend: SqliteBackend) -> None:
    other = await SqliteBackend.open(at(tmp_path, wait=30))
    async with backend.transaction() as connection:
        waiting = asyncio.ensure_future(_insert(other))
        for _ in range(10):
            await asyncio.sleep(0)
        assert not waiting.done()
        await connection.execute(text("INSERT INTO t VALUES (1)"))
    await waiting
    async with backend.reading() as connection:
        assert await connection.scalar(text("SELECT count(*) FROM t")) == 2
    await other.close()


async def test_a_lock_that_is_not_given_up_is_a_fault(tmp_path: Path, backend: SqliteBackend) -> None:
    other = await Database.open(at(tmp_path, wait=0.01))
    async with backend.transaction():
        with pytest.raises(Fault) as caught:
            await _write(other)
    assert caught.value.reason is Reason.STORAGE_FAILED
    await _write(other)
    await other.close()


async def test_more_readers_than_connections_wait_in_bounded_time(tmp_path: Path) -> None:
    database = await Database.open(at(tmp_path, connections=1, wait=0.01))
    async with database.reading():
        with pytest.raises(Fault) as caught:
            async with database.reading():
                pass
    assert caught.value.reason is Reason.STORAGE_FAILED
    async with database.reading() as connection:
        assert await connection.scalar(text("SELECT 1")) == 1
    await database.close()


async def test_a_caller_that_gave_up_leaves_no_lock_behind(tmp_path: Path) -> None:
    one, two = await Database.open(at(tmp_path)), await Database.open(at(tmp_path))
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


async def test_a_caller_that_gives_up_at_the_commit_gets_its_end(backend: SqliteBackend) -> None:
    """Cancelled while the disk is waited for: the transaction has ended before anybody else has the connection."""
    committing, go_on = asyncio.Event(), threading.Event()
    loop, apart = asyncio.get_running_loop(), backend._apart

    async def slow(work):  # type: ignore[no-untyped-def]  # of any result
        def waits() -> object:
            loop.call_soon_threadsafe(committing.set)
            go_on.wait(10)
            return work()

        return await apart(waits)

    backend._apart = slow  # type: ignore[method-assign]  # the disk is slow
    task = asyncio.ensure_future(_insert(backend))
    await committing.wait()
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with backend.reading() as connection:
        assert await connection.scalar(text("SELECT count(*) FROM t")) == 1


async def _insert(backend: SqliteBackend) -> None:
    async with backend.transaction() as connection:
        await connection.execute(text("INSERT INTO t VALUES (1)"))


async def _write(database: Database) -> None:
    async with database.transaction() as connection:
        await connection.execute(text("INSERT INTO t VALUES (1)"))
