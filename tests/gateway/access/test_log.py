"""Lines reach the file in order; the file is bounded; what does not fit is dropped and counted; nothing else is."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from foundation.faults import Fault
from foundation.fields import Fields
from foundation.reasons import Reason
from gateway.access.log import FLUSH_SECONDS, AccessLog, _File
from gateway.access.settings import AccessLogSettings, Format, QueryPart
from tests.fakes.clock import ManualClock
from tests.gateway.access.test_lines import access

SETTINGS = AccessLogSettings(format=Format.COMMON, query=QueryPart.DROP)


class Log:
    def __init__(self, folder: Path, settings: AccessLogSettings = SETTINGS) -> None:
        self.clock, self.path, self.dropped = ManualClock(), folder / "access.log", 0
        self.log = AccessLog(self.path, settings, self.clock, self.drop)

    def drop(self, count: int) -> None:
        self.dropped += count

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.log.run())
        await asyncio.sleep(0)
        yield
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def flush(self) -> None:
        self.clock.advance(FLUSH_SECONDS)
        async with asyncio.timeout(15):
            while not self.clock._sleepers:  # it sleeps again once all is written
                await asyncio.sleep(0.001)

    @property
    def text(self) -> str:
        return self.path.read_text()


async def test_lines_come_in_order_and_the_last_ones_at_the_end(tmp_path: Path) -> None:
    log = Log(tmp_path)
    async with log.running():
        log.log.ended(access(target=b"/1"))
        log.log.ended(access(target=b"/2"))
        assert not log.path.exists()
        await log.flush()
        assert [line.split()[6] for line in log.text.splitlines()] == ["/1", "/2"]
        log.log.ended(access(target=b"/3"))
    assert [line.split()[6] for line in log.text.splitlines()] == ["/1", "/2", "/3"]
    assert log.path.stat().st_mode & 0o777 == 0o640


async def test_a_full_buffer_drops_and_counts(tmp_path: Path) -> None:
    log = Log(tmp_path, replace(SETTINGS, buffer=300))
    async with log.running():
        for _ in range(10):
            log.log.ended(access())
        await log.flush()
        log.log.ended(access())
    assert len(log.text.splitlines()) + log.dropped == 11
    assert 0 < log.dropped < 10


async def test_a_file_that_cannot_be_written_costs_lines_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = Log(tmp_path / "not there")
    async with log.running():
        for _ in range(2):
            log.log.ended(access())
            await log.flush()
        assert log.dropped == 2
        (tmp_path / "not there").mkdir()
        log.log.ended(access())
        await log.flush()
        assert len(log.text.splitlines()) == 1
    assert len(caplog.records) == 1


async def test_a_link_is_not_followed(tmp_path: Path) -> None:
    log, other = Log(tmp_path), tmp_path / "other"
    other.write_text("")
    log.path.symlink_to(other)
    async with log.running():
        log.log.ended(access())
        await log.flush()
    assert (log.dropped, other.read_text()) == (1, "")


def test_the_file_and_their_number_are_bounded(tmp_path: Path) -> None:
    file = _File(tmp_path / "log", 100, 3)
    for number in range(20):
        file.append(b"%059d\n" % number)
    file.close()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["log.1", "log.2", "log.3", "log.lock"]
    lines = [line for name in ("log.3", "log.2", "log.1") for line in (tmp_path / name).read_text().split()]
    assert [int(line) for line in lines] == list(range(14, 20))


def test_several_processes_share_a_file(tmp_path: Path) -> None:
    one, other = _File(tmp_path / "log", 100, 5), _File(tmp_path / "log", 100, 5)
    for number in range(4):
        one.append(b"a%058d\n" % number)
        other.append(b"b%058d\n" % number)
    one.close()
    other.close()
    lines = [line for path in tmp_path.glob("log*") for line in path.read_text().split()]
    assert sorted(line[0] + line[-1] for line in lines) == ["a0", "a1", "a2", "a3", "b0", "b1", "b2", "b3"]
    assert all(path.stat().st_size <= 120 for path in tmp_path.iterdir())


def test_a_file_that_was_moved_away_is_begun_anew(tmp_path: Path) -> None:
    file = _File(tmp_path / "log", 1000, 3)
    file.append(b"1\n")
    os.rename(tmp_path / "log", tmp_path / "elsewhere")
    file.append(b"2\n")
    file.close()
    assert (tmp_path / "log").read_text() == "2\n"


@pytest.mark.parametrize("section", [{"format": "xml"}, {"query": "show"}, {"file_size": "1KiB"}, {"unknown": 1}])
def test_wrong_settings_are_refused(section: dict[str, object]) -> None:
    with pytest.raises(Fault):
        AccessLogSettings.parse(Fields(section, "access_log", Reason.SETTING_INVALID, unknown=Reason.SETTING_UNKNOWN))
