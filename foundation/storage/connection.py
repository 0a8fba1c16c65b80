"""What a transaction is worked with, on every backend: SQLAlchemy Core's statements in, whole results out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, TypeVar

from sqlalchemy import Connection as SyncConnection
from sqlalchemy import CursorResult, Executable

from foundation.storage.statement import Rows, Statement

_T = TypeVar("_T")


class Connection(Protocol):
    """One transaction's."""

    async def run(self, statement: Statement, parameters: Mapping[str, Any], /) -> Rows:
        """The result of a statement that was made once: the quick way."""
        ...

    async def execute(self, statement: Executable, parameters: Any = None, /) -> CursorResult[Any]:
        """The result, all of its rows read. `parameters` are a mapping, or a list of them."""
        ...

    async def scalar(self, statement: Executable, parameters: Any = None, /) -> Any:
        """The first column of the first row; None where there is none."""
        ...

    async def run_sync(self, work: Callable[[SyncConnection], _T], /) -> _T:
        """Let `work` use SQLAlchemy's own connection."""
        ...


class Backend(Protocol):
    """A kind of database. `Database` sees to it that only one of our own transactions is under way."""

    def transaction(self) -> AbstractAsyncContextManager[Connection]:
        """A transaction that other processes' writers wait for: commits at the end, rolls back on an exception."""
        ...

    def reading(self) -> AbstractAsyncContextManager[Connection]:
        """One consistent view, beside any writer; nothing is kept of it."""
        ...

    async def close(self) -> None: ...
