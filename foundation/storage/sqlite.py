"""A SQLite connection that changes threads only for what may wait.

Handing a call to a thread and back costs several times what SQLite needs for a small statement, and SQLAlchemy makes
four calls for each. Inside a transaction a statement waits for nobody: the write lock is held, and readers of a
write-ahead log are never blocked. So only the steps that wait for a lock or the disk go to the connection's thread:
opening, `BEGIN IMMEDIATE`, and the end of a write transaction. All else runs where it is called.

While the thread has work (a caller may have been cancelled there), every call queues behind it: order is never lost.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any

import aiosqlite

_CHUNK = 64  # rows; aiosqlite's own default


class SqliteConnection(aiosqlite.Connection):
    """What `aiosqlite.connect` returns, with fewer changes of thread."""

    def __init__(self, connector: Callable[[], sqlite3.Connection]) -> None:
        super().__init__(connector, _CHUNK)
        self._thread.daemon = True
        self._writing = False
        self._sent = 0  # counted by the event loop's thread alone
        self._done = 0  # counted by the connection's thread alone

    async def _execute(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        # aiosqlite passes every call through here.
        open_, waits = self._running and self._connection is not None, self._waits(fn, args)
        if open_ and not waits and self._sent == self._done:
            return fn(*args, **kwargs)
        self._sent += 1
        call = super()._execute(self._counted, fn, *args, **kwargs)  # type: ignore[no-untyped-call]  # it has no types
        return await call

    def _waits(self, fn: Callable[..., Any], args: tuple[Any, ...]) -> bool:
        name = fn.__name__
        if name.startswith("execute"):
            return self._statement_waits(str(args[0]))
        if name in ("commit", "rollback"):
            ends, self._writing = self._writing, False
            return ends
        return getattr(fn, "__self__", None) is self._connection and name != "cursor"

    def _statement_waits(self, sql: str) -> bool:
        if sql == "BEGIN":
            return False
        if sql == "BEGIN IMMEDIATE":
            self._writing = True
            return True
        return self._connection is None or not self._connection.in_transaction

    def _counted(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return fn(*args, **kwargs)
        finally:
            self._done += 1


def connect_sqlite(database: str, **options: Any) -> SqliteConnection:
    """As `aiosqlite.connect`: await it. The options are those of `sqlite3.connect`."""

    def connector() -> sqlite3.Connection:
        # The two threads take turns, and SQLite itself serialises (sqlite3.threadsafety is 3 or it is refused here).
        made: sqlite3.Connection = sqlite3.connect(database, **options | {"check_same_thread": False})
        return made

    if sqlite3.threadsafety != 3:
        raise RuntimeError("this SQLite was built without serialised threading")
    return SqliteConnection(connector)
