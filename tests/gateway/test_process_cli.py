"""`sallyport reload` and `upgrade` against the API at a Unix socket: what they say, and when they fail."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from foundation.api import api_application
from foundation.callers import LocalCallers
from foundation.faults import Fault
from foundation.reasons import Reason
from foundation.serving import serve_unix
from gateway import process_cli
from gateway.api.process import Incarnation, ProcessApi, Workforce
from gateway.errands import Asked, Errand, Errands
from tests.support.installation import TRUST_DOMAIN, PermitAll

FIRST = Incarnation("one", 7, "0.1.0")
ROOT = f"spiffe://{TRUST_DOMAIN}/operator/local-uid-0"


class Served:
    """The API of one main process at `path`. `judged` is what a reload would take up, or is refused with."""

    def __init__(self, path: Path, incarnation: Incarnation = FIRST) -> None:
        self.errands = Errands()
        self.retiring = 0
        self.judged: tuple[str, ...] | Fault = ()
        self._path = path
        self._incarnation = incarnation

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Served]:
        api = ProcessApi(self._incarnation, self.errands, lambda: Workforce(2, 2, self.retiring), self._judge)
        application = api_application(api.routes(), LocalCallers(TRUST_DOMAIN).identify, PermitAll())
        async with serve_unix(application, self._path):
            yield self

    async def next(self, asked: asyncio.Task[Result]) -> Errand:
        """What a command asks; it must not have ended."""
        found = asyncio.ensure_future(self.errands.next())
        await asyncio.wait([found, asked], return_when=asyncio.FIRST_COMPLETED)
        assert found.done(), asked.result().exception
        errand = found.result()
        assert errand is not None
        return errand

    def _judge(self) -> tuple[str, ...]:
        if isinstance(self.judged, Fault):
            raise self.judged
        return self.judged


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "api.sock"


def start(path: Path, name: str, *words: str) -> asyncio.Task[Result]:
    app = getattr(process_cli, name)
    return asyncio.create_task(asyncio.to_thread(CliRunner().invoke, app, [*words, "--socket", str(path)]))


async def test_a_reload_says_what_was_taken_up(path: Path) -> None:
    async with Served(path).running() as served:
        asked = start(path, "reload")
        errand = await served.next(asked)
        assert (errand.asked, errand.actor) == (Asked.RELOAD, ROOT)
        errand.done(("certificate", "gateway.workers"))
        done = await asked
    assert (done.exit_code, done.stdout.split("\n")[:2]) == (
        0,
        ["taken up      certificate", "taken up      gateway.workers"],
    )


async def test_a_reload_of_nothing_says_so_in_json_too(path: Path) -> None:
    async with Served(path).running() as served:
        for words in ((), ("--json",)):
            asked = start(path, "reload", *words)
            (await served.next(asked)).done(())
            done = await asked
            assert done.exit_code == 0
        assert json.loads(done.stdout)["taken"] == []


async def test_settings_that_are_refused_fail_it_with_the_reason_and_say_what_was_taken_up_nevertheless(
    path: Path,
) -> None:
    async with Served(path).running() as served:
        asked = start(path, "reload")
        (await served.next(asked)).done(("certificate",), Fault(Reason.SETTING_FIXED, field="api.port"))
        done = await asked
    assert "certificate" in done.stdout
    assert isinstance(done.exception, Fault)
    assert (done.exception.reason, done.exception.field) == (Reason.SETTING_FIXED, "api.port")


async def test_a_check_asks_for_nothing(path: Path) -> None:
    async with Served(path).running() as served:
        served.judged = ("gateway.workers",)
        assert "would take up gateway.workers" in (await start(path, "reload", "--check")).stdout
        served.judged = Fault(Reason.SETTING_UNKNOWN, field="gateway.wrokers")
        done = await start(path, "reload", "--check")
        assert isinstance(done.exception, Fault)
        assert done.exception.reason is Reason.SETTING_UNKNOWN
        assert served.errands.known == ()


async def test_an_upgrade_is_done_when_another_instance_answers(path: Path) -> None:
    async with Served(path).running() as served:
        asked = start(path, "upgrade", "--drain", "0")
        await served.next(asked)
    async with Served(path, replace(FIRST, instance="two", version="0.2.0")).running() as served:
        served.retiring = 1
        done = await asked
    assert "0.1.0 → 0.2.0, process 7" in done.stdout, done.exception
    assert "1 let end what they carry" in done.stdout


async def test_new_code_that_is_refused_is_told_with_its_own_words(path: Path) -> None:
    async with Served(path).running() as served:
        asked = start(path, "upgrade")
        (await served.next(asked)).done((), Fault(Reason.NEW_CODE_REFUSED, "SyntaxError: invalid syntax"))
        done = await asked
    assert isinstance(done.exception, Fault)
    assert done.exception.detail == "SyntaxError: invalid syntax"


async def test_a_process_that_was_started_anew_is_no_upgrade(path: Path) -> None:
    async with Served(path).running() as served:
        asked = start(path, "upgrade")
        await served.next(asked)
    async with Served(path, Incarnation("two", 8, "0.2.0")).running():
        done = await asked
    assert isinstance(done.exception, Fault)
    assert "process 7 ended" in done.exception.detail


async def test_a_reload_that_an_upgrade_overtakes_is_done_by_it(path: Path) -> None:
    async with Served(path).running() as served:
        asked = start(path, "reload")
        await served.next(asked)
    async with Served(path, replace(FIRST, instance="two")).running():
        done = await asked
    assert (done.exit_code, done.stdout.strip()) == (0, "taken up      everything")


async def test_it_does_not_wait_for_ever(path: Path) -> None:
    async with Served(path).running():
        done = await start(path, "reload", "--within", "1")
    assert isinstance(done.exception, Fault)
    assert done.exception.reason is Reason.SERVER_UNREACHABLE
    done = await start(path, "reload")
    assert isinstance(done.exception, Fault), "nobody to ask"
