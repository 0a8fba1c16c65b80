"""PostgreSQL, for more than one gateway: asyncpg behind SQLAlchemy's asynchronous engine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar

from sqlalchemy import Connection, CursorResult, Executable, TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from foundation.faults import Fault
from foundation.files import read_secret
from foundation.reasons import Reason
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

    def transaction(self) -> AbstractAsyncContextManager[PostgresqlConnection]:
        return self._begun(_WRITES)

    def reading(self) -> AbstractAsyncContextManager[PostgresqlConnection]:
        return self._begun(_READS)

    @asynccontextmanager
    async def _begun(self, first: TextClause) -> AsyncIterator[PostgresqlConnection]:
        async with AsyncExitStack() as stack:
            with _Reaching():
                connection = await stack.enter_async_context(self._engine.connect())
                await connection.execute(first)
            yield PostgresqlConnection(connection)  # what it raises rolls back
            with _Reaching():
                await connection.commit()

    async def close(self) -> None:
        await self._engine.dispose()


class PostgresqlConnection:
    """Implements `foundation.storage.connection.Connection`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def run(self, statement: Statement, parameters: Mapping[str, Any], /) -> Rows:
        with _Reaching():
            result = await self._connection.execute(statement.clause, parameters)
        return Rows(list(result.all()) if result.returns_rows else [], result.rowcount)

    async def execute(self, statement: Executable, parameters: Any = None, /) -> CursorResult[Any]:
        with _Reaching():
            return await self._connection.execute(statement, parameters)

    async def scalar(self, statement: Executable, parameters: Any = None, /) -> Any:
        with _Reaching():
            return await self._connection.scalar(statement, parameters)

    async def run_sync(self, work: Callable[[Connection], _T], /) -> _T:
        with _Reaching():
            return await self._connection.run_sync(work)


class _Reaching:
    """asyncpg tells of a server that is away, or silent for too long, by the system's own errors, and SQLAlchemy passes
    them on. Only around calls of the driver: what a transaction's own block raises is not ours."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):  # TimeoutError is one
            raise Fault(Reason.STORAGE_FAILED, internal=f"{type(error).__name__}: {error}") from error


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
