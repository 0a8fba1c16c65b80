"""A PostgreSQL that is away; what a database does on every backend is in tests/conformance/test_storage.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import text

from foundation.faults import Fault
from foundation.reasons import Reason
from foundation.storage.database import Database
from foundation.storage.settings import StorageSettings
from tests.support.postgresql import PostgresqlServer, postgresql_server


async def test_a_server_that_is_not_there_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(Fault) as caught:
        await Database.open(StorageSettings(f"postgresql+asyncpg://postgres@/postgres?host={tmp_path}"))
    assert caught.value.reason is Reason.STORAGE_FAILED


async def test_a_server_that_goes_away_is_a_fault() -> None:
    with postgresql_server() as server:
        database = await Database.open(StorageSettings(server.url))
        try:
            reasons = {await _reason(database, server.stop), await _reason(database, lambda: None)}
        finally:
            await database.close()
    assert reasons == {Reason.STORAGE_FAILED}


async def _reason(database: Database, meanwhile: Callable[[], None]) -> Reason | None:
    """Why a transaction failed in which something happened."""
    try:
        async with database.transaction() as connection:
            meanwhile()
            await connection.execute(text("SELECT 1"))
    except Fault as fault:
        return fault.reason
    return None


async def test_an_error_of_the_blocks_own_is_not_the_databases(postgresql: PostgresqlServer) -> None:
    database = await Database.open(StorageSettings(postgresql.url))
    try:
        with pytest.raises(TimeoutError):
            async with database.transaction():
                raise TimeoutError
    finally:
        await database.close()
