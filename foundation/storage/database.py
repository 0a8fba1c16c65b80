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
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection as SyncConnection
from sqlalchemy import MetaData, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from foundation.faults import Fault
from foundation.reasons import Reason
from foundation.storage.connection import Backend, Connection
from foundation.storage.postgresql import PostgresqlBackend
from foundation.storage.settings import StorageSettings
from foundation.storage.sqlite import SqliteBackend

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


class Database:
    """Connections to the database. Make one with `open`."""

    def __init__(self, backend: Backend, wait: float) -> None:
        self._backend = backend
        self._wait = wait
        self._writer = asyncio.Lock()  # fair among our own tasks; SQLite's own waiting is not

    @classmethod
    async def open(cls, settings: StorageSettings) -> Database:
        """Connect, making the SQLite file (0600, in a folder of mode 0700) where it is missing. Raises
        `Fault(STORAGE_FAILED | FILE_MODE_UNSAFE | FILE_UNREADABLE)`."""
        with _DriverErrors():
            sqlite = settings.parsed_url.get_backend_name() == "sqlite"
            database = cls(await SqliteBackend.open(settings) if sqlite else PostgresqlBackend(settings), settings.wait)
        try:
            async with database.reading() as connection:
                await connection.execute(text("SELECT 1"))
        except BaseException:
            await database.close()
            raise
        return database

    async def close(self) -> None:
        """Close every connection."""
        await self._backend.close()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """A write transaction, the only one under way: commits at the end of the block, rolls back on an exception.
        Never open one inside another. Raises `Fault(STORAGE_FAILED)`, `IntegrityError`."""
        await self._queue()
        try:
            with _DriverErrors():
                async with self._backend.transaction() as connection:
                    yield connection
        finally:
            self._writer.release()

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Connection]:
        """One consistent view of the database, beside any writer. Raises `Fault(STORAGE_FAILED)`."""
        with _DriverErrors():
            async with self._backend.reading() as connection:
                yield connection

    async def migrate(self) -> None:
        """Bring the tables to the newest migration, in one transaction. Raises `Fault(STORAGE_FAILED)`."""
        async with self.transaction() as connection:
            await connection.run_sync(_upgrade)

    async def _queue(self) -> None:
        if not self._writer.locked():
            await self._writer.acquire()
            return
        try:
            async with asyncio.timeout(self._wait):
                await self._writer.acquire()
        except TimeoutError:
            raise Fault(Reason.STORAGE_FAILED, "another transaction took too long") from None


class _DriverErrors:
    """Turns what the driver raised inside the block into a `Fault`."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, DBAPIError) and not isinstance(error, IntegrityError):
            cause = f"{type(error.orig).__name__}: {error.orig}"
            raise Fault(Reason.STORAGE_FAILED, internal=cause) from error
        if isinstance(error, sqlite3.Error):  # of a transaction's own steps, which SQLAlchemy does not see
            raise Fault(Reason.STORAGE_FAILED, internal=f"{type(error).__name__}: {error}") from error
        if isinstance(error, PoolTimeout):
            raise Fault(Reason.STORAGE_FAILED, "every connection is in use") from error


def _upgrade(connection: SyncConnection) -> None:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
