"""The one database: SQLite in a file by default, PostgreSQL where more than one process writes.

Laws held here:
- one write transaction at a time, on every backend: what it read stays true until it commits, so that compare-and-swap
  is read, compare, write;
- a commit that returned survives loss of power;
- a driver's failure is `Fault(STORAGE_FAILED)`; `sqlalchemy.exc.IntegrityError` passes through, for a broken constraint
  is the caller's to understand.

Each package declares its tables on `metadata`, in SQLAlchemy Core; `migrations/versions` makes them.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, MetaData, event, text
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from foundation.faults import Fault
from foundation.files import SECRET_MODE, check_secret_mode, make_private_folder, read_secret
from foundation.reasons import Reason
from foundation.storage.settings import StorageSettings
from foundation.storage.sqlite import connect_sqlite

# Names for constraints, so that a migration can drop what it did not name.
metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)
_MIGRATIONS = Path(__file__).with_name("migrations")
_WRITES = "sallyport_writes"  # execution option: this connection's next transaction will write
_WRITER_LOCK = 0x5A11_1904  # PostgreSQL's advisory lock that every write transaction takes


class Database:
    """Connections to the database. Make one with `open`."""

    def __init__(self, engine: AsyncEngine, settings: StorageSettings) -> None:
        self._engine = engine
        self._wait = settings.wait
        self._writer = asyncio.Lock()  # fair among our own tasks; SQLite's own waiting is not

    @classmethod
    async def open(cls, settings: StorageSettings) -> Database:
        """Connect, making the SQLite file (0600, in a folder of mode 0700) where it is missing. Raises
        `Fault(STORAGE_FAILED | FILE_MODE_UNSAFE | FILE_UNREADABLE)`."""
        sqlite = settings.parsed_url.get_backend_name() == "sqlite"
        database = cls(_sqlite_engine(settings) if sqlite else _postgresql_engine(settings), settings)
        try:
            async with database.reading() as connection:
                await connection.execute(text("SELECT 1"))
        except BaseException:
            await database.close()
            raise
        return database

    async def close(self) -> None:
        """Close every connection."""
        await self._engine.dispose()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """A write transaction, the only one under way: commits at the end of the block, rolls back on an exception.
        Never open one inside another. Raises `Fault(STORAGE_FAILED)`, `IntegrityError`."""
        async with AsyncExitStack() as stack:
            await self._queue(stack)
            stack.enter_context(_DriverErrors())
            connection = await stack.enter_async_context(self._engine.connect())
            await connection.execution_options(**{_WRITES: True})
            await stack.enter_async_context(connection.begin())
            yield connection

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """One consistent view of the database, beside any writer. Raises `Fault(STORAGE_FAILED)`."""
        with _DriverErrors():
            async with self._engine.connect() as connection, connection.begin():
                yield connection

    async def migrate(self) -> None:
        """Bring the tables to the newest migration, in one transaction. Raises `Fault(STORAGE_FAILED)`."""
        async with self.transaction() as connection:
            await connection.run_sync(_upgrade)

    async def _queue(self, stack: AsyncExitStack) -> None:
        try:
            async with asyncio.timeout(self._wait):
                await self._writer.acquire()
        except TimeoutError:
            raise Fault(Reason.STORAGE_FAILED, "another transaction took too long") from None
        stack.callback(self._writer.release)


class _DriverErrors:
    """Turns what the driver raised inside the block into a `Fault`."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, DBAPIError) and not isinstance(error, IntegrityError):
            cause = f"{type(error.orig).__name__}: {error.orig}"
            raise Fault(Reason.STORAGE_FAILED, internal=cause) from error
        if isinstance(error, PoolTimeout):
            raise Fault(Reason.STORAGE_FAILED, "every connection is in use") from error


def _sqlite_engine(settings: StorageSettings) -> AsyncEngine:
    name = settings.parsed_url.database
    if not name or name == ":memory:":
        raise Fault(Reason.SETTING_INVALID, "name a file", field="storage.url")
    _make_private_file(Path(name))
    engine = create_async_engine(
        settings.parsed_url,
        hide_parameters=True,
        pool_size=settings.connections,
        max_overflow=0,
        pool_timeout=settings.wait,
        connect_args={"timeout": settings.wait, "async_creator_fn": connect_sqlite},
    )
    event.listen(engine.sync_engine, "connect", _prepare_sqlite)
    event.listen(engine.sync_engine, "begin", _begin_sqlite)
    return engine


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


def _prepare_sqlite(connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
    # Without this the driver begins transactions by its own rules, after the first read: too late to compare and swap.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "trusted_schema=OFF"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _postgresql_engine(settings: StorageSettings) -> AsyncEngine:
    url = settings.parsed_url
    if settings.password_file is not None:
        url = url.set(password=read_secret(settings.password_file).decode().strip())
    engine = create_async_engine(
        url,
        hide_parameters=True,
        pool_size=settings.connections,
        max_overflow=0,
        pool_timeout=settings.wait,
        pool_pre_ping=True,
        connect_args={"timeout": settings.wait, "command_timeout": settings.wait},
    )
    event.listen(engine.sync_engine, "begin", _begin_postgresql)
    return engine


def _begin_postgresql(connection: Connection) -> None:
    # READ COMMITTED sees all that was committed before each statement; with one writer that is enough.
    if connection.get_execution_options().get(_WRITES, False):
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_WRITER_LOCK})")
    else:
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")


def _upgrade(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
