"""SQLite in a file: SQLAlchemy's plain engine, which changes threads only for what may wait.

Handing a call to a thread and back costs more than SQLite needs for a small statement, and an asynchronous driver does
it several times for each. Inside a transaction a statement waits for nobody: the write lock is held, and readers of a
write-ahead log are never blocked. So only what waits goes to a thread: opening the file, `BEGIN IMMEDIATE` while
another process writes, and the commit, which waits for the disk. All else runs where it is called.

Laws held here:
- a connection is used by one thread at a time: whoever gave it to the thread waits until it is back, cancelled or not;
- a connection that is kept for later has no transaction.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, CursorResult, Engine, Executable, NullPool, create_engine, event
from sqlalchemy.exc import IntegrityError
from sqlalchemy.pool import ConnectionPoolEntry

from foundation.faults import Fault
from foundation.files import SECRET_MODE, check_secret_mode, make_private_folder
from foundation.reasons import Reason
from foundation.storage.settings import StorageSettings
from foundation.storage.statement import Rows, Statement

_PRAGMAS = ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "trusted_schema=OFF")
_T = TypeVar("_T")


class SqliteBackend:
    """Implements `foundation.storage.connection.Backend`. Make one with `open`."""

    def __init__(self, engine: Engine, settings: StorageSettings) -> None:
        self._engine = engine
        self._wait_ms = int(settings.wait * 1000)
        self._wait = settings.wait
        self._free = asyncio.Semaphore(settings.connections)
        self._idle: list[Connection] = []
        self._thread = ThreadPoolExecutor(1, "sqlite")

    @classmethod
    async def open(cls, settings: StorageSettings) -> SqliteBackend:
        """Open the file, making it (0600, in a folder of mode 0700) where it is missing. Raises
        `Fault(SETTING_INVALID | FILE_MODE_UNSAFE | FILE_UNREADABLE)` and what the driver raises."""
        if sqlite3.threadsafety != 3:
            raise RuntimeError("this SQLite was built without serialised threading")
        name = settings.parsed_url.database
        if not name or name == ":memory:":
            raise Fault(Reason.SETTING_INVALID, "name a file", field="storage.url")
        _make_private_file(Path(name))
        backend = cls(_engine(settings), settings)
        try:
            # Whoever opens first may have to recover from a crash; while this one is open nobody has to again.
            backend._idle.append(await backend._apart(backend._engine.connect))
        except BaseException:
            await backend.close()
            raise
        return backend

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[SqliteConnection]:
        async with self._connection() as connection:
            driver = _driver(connection)
            if not self._begin_at_once(driver):
                await self._apart(lambda: driver.execute("BEGIN IMMEDIATE"))
            yield SqliteConnection(connection, self._apart)
            await self._apart(driver.commit)

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[SqliteConnection]:
        async with self._connection() as connection:
            _driver(connection).execute("BEGIN")
            yield SqliteConnection(connection, self._apart)

    async def close(self) -> None:
        idle, self._idle = self._idle, []
        for connection in idle:
            await self._apart(connection.close)  # the last one writes the log back into the file
        self._thread.shutdown(wait=False)

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        """A connection that is nobody else's. What is under way when it comes back is rolled back."""
        if self._free.locked():
            await self._wait_for_room()
        else:
            await self._free.acquire()
        try:
            connection = self._idle.pop() if self._idle else self._engine.connect()
            try:
                yield connection
            finally:
                self._take_back(connection)
        finally:
            self._free.release()

    async def _wait_for_room(self) -> None:
        try:
            async with asyncio.timeout(self._wait):
                await self._free.acquire()
        except TimeoutError:
            raise Fault(Reason.STORAGE_FAILED, "every connection is in use") from None

    def _take_back(self, connection: Connection) -> None:
        try:
            _driver(connection).rollback()
            connection.rollback()
        except BaseException:
            connection.invalidate()
            connection.close()
            raise
        self._idle.append(connection)

    def _begin_at_once(self, driver: sqlite3.Connection) -> bool:
        """Take the write lock where it is free, which it is when we are the only process."""
        driver.execute("PRAGMA busy_timeout=0")
        try:
            driver.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                raise
            return False
        finally:
            driver.execute(f"PRAGMA busy_timeout={self._wait_ms}")
        return True

    async def _apart(self, work: Callable[[], _T]) -> _T:
        """Run `work` in the thread, and wait for its end even when cancelled."""
        future = asyncio.get_running_loop().run_in_executor(self._thread, work)
        cancelled: asyncio.CancelledError | None = None
        while not future.done():
            try:
                await asyncio.wait((future,))
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            future.exception()  # seen; the caller has given up
            raise cancelled
        return future.result()


class SqliteConnection:
    """Implements `foundation.storage.connection.Connection`: nothing here waits, but for `run_sync`."""

    def __init__(self, connection: Connection, apart: Callable[[Callable[[], Any]], Any]) -> None:
        self._connection = connection
        self._driver = _driver(connection)
        self._apart = apart

    async def run(self, statement: Statement, parameters: Mapping[str, Any], /) -> Rows:
        plain = statement.plain(tuple(parameters), self._connection.dialect)
        try:
            cursor = self._driver.execute(plain.text, plain.values(parameters))
            return Rows(plain.rows(cursor.fetchall()), cursor.rowcount)
        except sqlite3.IntegrityError as error:
            raise IntegrityError(plain.text, None, error) from error  # as `execute` does; without the values

    async def execute(self, statement: Executable, parameters: Any = None, /) -> CursorResult[Any]:
        return self._connection.execute(statement, parameters)

    async def scalar(self, statement: Executable, parameters: Any = None, /) -> Any:
        return self._connection.scalar(statement, parameters)

    async def run_sync(self, work: Callable[[Connection], _T], /) -> _T:
        result: _T = await self._apart(lambda: work(self._connection))
        return result


def _engine(settings: StorageSettings) -> Engine:
    engine = create_engine(
        settings.parsed_url,
        hide_parameters=True,
        poolclass=NullPool,  # connections are kept here, ready for use
        # The driver would begin transactions by its own rules, after the first read: too late to compare and swap.
        connect_args={"timeout": settings.wait, "check_same_thread": False, "isolation_level": None},
    )
    event.listen(engine, "connect", _prepare)
    return engine


def _prepare(connection: Any, _entry: ConnectionPoolEntry) -> None:
    for pragma in _PRAGMAS:
        connection.execute(f"PRAGMA {pragma}")


def _driver(connection: Connection) -> sqlite3.Connection:
    driver = connection.connection.dbapi_connection
    if not isinstance(driver, sqlite3.Connection):
        raise TypeError("not a connection of SQLite")
    return driver


def _make_private_file(path: Path) -> None:
    make_private_folder(path.absolute().parent)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, SECRET_MODE)
    except OSError as error:
        raise Fault(Reason.FILE_UNREADABLE, error.strerror or "unreadable", field=str(path)) from error
    try:
        check_secret_mode(path, os.fstat(descriptor))
    finally:
        os.close(descriptor)
