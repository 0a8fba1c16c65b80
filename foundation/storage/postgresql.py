"""PostgreSQL, for more than one gateway: asyncpg behind SQLAlchemy's asynchronous engine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from sqlalchemy import Connection, CursorResult, Executable, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from foundation.files import read_secret
from foundation.storage.settings import StorageSettings
from foundation.storage.statement import Rows, Statement

_T = TypeVar("_T")
_WRITER_LOCK = 0x5A11_1904  # the advisory lock that every write transaction takes
# READ COMMITTED sees all that was committed before each statement; with one writer that is enough.
_WRITES = text(f"SELECT pg_advisory_xact_lock({_WRITER_LOCK})")
_READS = text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")


class PostgresqlBackend:
    """Implements `Backend`."""

    def __init__(self, settings: StorageSettings) -> None:
        """Raises `Fault(FILE_MODE_UNSAFE | FILE_UNREADABLE)` for the password's file."""
        self._engine = _engine(settings)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[PostgresqlConnection]:
        async with self._engine.begin() as connection:
            await connection.execute(_WRITES)
            yield PostgresqlConnection(connection)

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[PostgresqlConnection]:
        async with self._engine.begin() as connection:
            await connection.execute(_READS)
            yield PostgresqlConnection(connection)

    async def close(self) -> None:
        await self._engine.dispose()


class PostgresqlConnection:
    """Implements `foundation.storage.connection.Connection`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def run(self, statement: Statement, parameters: Mapping[str, Any], /) -> Rows:
        result = await self._connection.execute(statement.clause, parameters)
        return Rows(list(result.all()) if result.returns_rows else [], result.rowcount)

    async def execute(self, statement: Executable, parameters: Any = None, /) -> CursorResult[Any]:
        return await self._connection.execute(statement, parameters)

    async def scalar(self, statement: Executable, parameters: Any = None, /) -> Any:
        return await self._connection.scalar(statement, parameters)

    async def run_sync(self, work: Callable[[Connection], _T], /) -> _T:
        return await self._connection.run_sync(work)


def _engine(settings: StorageSettings) -> AsyncEngine:
    url = settings.parsed_url
    if settings.password_file is not None:
        url = url.set(password=read_secret(settings.password_file).decode().strip())
    return create_async_engine(
        url,
        hide_parameters=True,
        pool_size=settings.connections,
        max_overflow=0,
        pool_timeout=settings.wait,
        pool_pre_ping=True,
        connect_args={"timeout": settings.wait, "command_timeout": settings.wait},
    )
