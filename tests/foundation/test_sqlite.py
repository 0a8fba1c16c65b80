"""What is particular to SQLite: pragmas and private files; and the addresses that settings allow."""

from __future__ import annotations

import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import text

from foundation.faults import Fault
from foundation.fields import Fields
from foundation.reasons import Reason
from foundation.storage.database import Database
from foundation.storage.settings import StorageSettings


def at(path: Path) -> StorageSettings:
    return StorageSettings(url=f"sqlite:///{path}")


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = await Database.open(at(tmp_path / "state" / "test.db"))
    async with opened.transaction() as connection:
        await connection.execute(text("CREATE TABLE t (x INTEGER)"))
    yield opened
    await opened.close()


async def test_pragmas_are_on(database: Database) -> None:
    async with database.reading() as connection:
        found = [
            (await connection.execute(text(f"PRAGMA {name}"))).scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        ]
    assert found == ["wal", 2, 1]


async def test_files_are_private(database: Database, tmp_path: Path) -> None:
    folder = tmp_path / "state"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


async def test_a_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "open.db"
    path.touch(mode=0o644)
    with pytest.raises(Fault) as caught:
        await Database.open(at(path))
    assert caught.value.reason is Reason.FILE_MODE_UNSAFE


async def test_what_is_no_database_is_a_fault(tmp_path: Path) -> None:
    path = tmp_path / "text.db"
    path.write_bytes(b"not a database" * 100)
    path.chmod(0o600)
    with pytest.raises(Fault) as caught:
        await Database.open(at(path))
    assert caught.value.reason is Reason.STORAGE_FAILED


@pytest.mark.parametrize(
    "url",
    [
        "mysql://h/d",
        "sqlite+aiosqlite:///x",
        "nonsense",
        "postgresql+asyncpg://user:secret@h/d",
    ],
)
def test_urls_that_are_refused(url: str) -> None:
    with pytest.raises(Fault) as caught:
        StorageSettings.parse(Fields({"url": url}, "storage", Reason.SETTING_INVALID))
    assert caught.value.field == "storage.url"
    assert "secret" not in str(caught.value)
