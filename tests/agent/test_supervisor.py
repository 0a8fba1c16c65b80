"""Supervised services as real processes: what is killed comes back, what is stopped is gone with all its children."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvloop

from agent.restarts import Phase, RestartPolicy
from agent.supervised import ServiceSettings
from agent.supervisor import Supervisor
from foundation.clock import SystemClock
from tests.fakes.clock import ManualClock

QUICK = RestartPolicy(least=0.01, most=0.05, quiet=60)


def shell(script: str, name: str = "one", **fields: object) -> ServiceSettings:
    """A service for tests; the shell is its command."""
    return ServiceSettings(name, ("/bin/sh", "-c", script), **{"restart": QUICK, **fields})  # type: ignore[arg-type]


@asynccontextmanager
async def supervising(*services: ServiceSettings, clock: ManualClock | None = None) -> AsyncIterator[Supervisor]:
    supervisor = Supervisor(services, clock or SystemClock(), lambda: 0.0)
    task = asyncio.create_task(supervisor.run())
    try:
        yield supervisor
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not is_so():
            await asyncio.sleep(0.005)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return b") Z " not in Path(f"/proc/{pid}/stat").read_bytes()


def pids(file: Path) -> list[int]:
    return [int(line) for line in file.read_text().split()] if file.exists() else []


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_what_is_killed_starts_again(tmp_path: Path, run: Callable[[object], None]) -> None:
    async def scenario() -> None:
        seen = tmp_path / "pids"
        async with supervising(shell(f"echo $$ >> {seen}; exec sleep 1000")) as supervisor:
            for round_ in range(1, 4):
                await until(lambda wanted=round_: len(pids(seen)) == wanted)  # type: ignore[misc]
                os.kill(pids(seen)[-1], signal.SIGKILL)
            await until(lambda: len(pids(seen)) == 4)
            await until(lambda: supervisor.lives()["one"].phase is Phase.RUNNING)
            life = supervisor.lives()["one"]
            assert (life.restarts, life.failures, life.last_exit) == (3, 3, "killed by SIGKILL")
        assert not any(map(is_alive, pids(seen)))

    run(scenario())


async def test_the_whole_group_goes_when_the_service_is_stopped(tmp_path: Path) -> None:
    seen = tmp_path / "pids"
    # Neither hears SIGTERM.
    stubborn = f"echo $$ >> {seen}; while :; do sleep 1; done"
    script = f"trap '' TERM; sh -c '{stubborn}' & {stubborn}"
    async with supervising(shell(script, stop=0.05)):
        await until(lambda: len(pids(seen)) == 2)
        assert all(map(is_alive, pids(seen)))
    assert not any(map(is_alive, pids(seen)))


async def test_children_of_a_service_that_ended_go_before_it_starts_again(tmp_path: Path) -> None:
    seen, clock = tmp_path / "pids", ManualClock()
    async with supervising(shell(f"sleep 1000 & echo $! >> {seen}; exit 3"), clock=clock) as supervisor:
        await until(lambda: supervisor.lives()["one"].phase is Phase.BACKING_OFF)
        assert supervisor.lives()["one"].last_exit == "exit 3"
        assert not any(map(is_alive, pids(seen)))


async def test_a_service_is_asked_to_end_before_it_is_made_to(tmp_path: Path) -> None:
    seen, ended = tmp_path / "pids", tmp_path / "ended"
    async with supervising(
        shell(f"trap 'echo bye > {ended}; exit 0' TERM; echo $$ >> {seen}; while :; do sleep 0.01; done")
    ):
        await until(lambda: len(pids(seen)) == 1)
    assert ended.read_text() == "bye\n"


async def test_a_service_tells_its_version_when_it_starts(tmp_path: Path) -> None:
    told, missing = tmp_path / "version", tmp_path / "nowhere"
    told.write_text("1.2.3 \nbuilt today\n")
    services = [shell("sleep 1000", version=told), shell("sleep 1000", "two", version=missing), shell("true", "three")]
    async with supervising(*services) as supervisor:
        await until(lambda: supervisor.lives()["two"].phase is Phase.RUNNING)
        assert supervisor.versions() == {"one": "1.2.3"}


async def test_what_cannot_start_is_reported_and_tried_again() -> None:
    clock = ManualClock()
    nowhere = shell("true", directory=Path("/nowhere"))
    missing = ServiceSettings("two", ("/bin/nothing-of-that-name",), restart=QUICK)
    async with supervising(nowhere, missing, clock=clock) as supervisor:
        for tries in range(1, 4):
            await until(lambda wanted=tries: all(life.failures == wanted for life in supervisor.lives().values()))  # type: ignore[misc]
            clock.advance(1)
        lives = supervisor.lives()
    assert "not started" in lives["one"].last_exit
    assert lives["two"].last_exit == "exit 127"
    assert lives["one"].restarts == 2


async def test_output_goes_to_the_log_line_by_line(caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock()
    with caplog.at_level(logging.INFO, "sallyport.agent.service"):
        script = r"echo one; printf 'two\033[31m\n' >&2; head -c 100000 /dev/zero | tr '\0' x; echo; printf last"
        async with supervising(shell(script), clock=clock) as supervisor:
            await until(lambda: supervisor.lives()["one"].phase is Phase.BACKING_OFF)
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.INFO]
    assert [said[0], said[1], said[3]] == ["one", "two�[31m", "last"]
    assert len(said[2]) < 5000
    assert all(record.service == "one" for record in caplog.records)  # type: ignore[attr-defined]


async def test_somebody_outside_the_group_who_holds_the_output_stops_nothing(tmp_path: Path) -> None:
    seen = tmp_path / "pids"
    script = f"setsid sh -c 'echo $$ >> {seen}; exec sleep 1000' & while [ ! -s {seen} ]; do sleep 0.01; done"
    clock = ManualClock()
    async with supervising(shell(script), clock=clock) as supervisor:
        await until(lambda: supervisor.lives()["one"].phase is Phase.BACKING_OFF)
    os.kill(pids(seen)[0], signal.SIGKILL)


async def test_limits_privileges_and_environment_are_the_services_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/agents")
    told = tmp_path / "told"
    tell = "ulimit -n; ulimit -v; grep NoNewPrivs /proc/self/status; env"
    script = f"{{ {tell}; }} > {told}.new; mv {told}.new {told}; sleep 1000"
    async with supervising(shell(script, files=40, memory=1 << 30)):
        await until(told.exists)
    lines = told.read_text().split("\n")
    assert lines[:3] == ["40", str(1 << 20), "NoNewPrivs:\t1"]
    assert not any(line.startswith("NOTIFY_SOCKET") for line in lines)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may change users")
async def test_another_user_is_the_one_named(tmp_path: Path) -> None:
    told = tmp_path / "told"
    told.touch()
    told.chmod(0o666)
    for folder in (tmp_path, *tmp_path.parents[:-1]):
        folder.chmod(folder.stat().st_mode | 0o011)
    async with supervising(shell(f"id -u >> {told}; id -G >> {told}; sleep 1000", user="nobody")):
        await until(lambda: told.read_text().count("\n") == 2)
    assert told.read_text().split("\n")[0] == "65534"
    assert "0" not in told.read_text().split("\n")[1].split()


def test_a_service_does_not_outlive_an_agent_that_is_killed(tmp_path: Path) -> None:
    seen = tmp_path / "pids"
    program = (
        "import asyncio; from agent.supervisor import Supervisor; from agent.supervised import ServiceSettings;"
        "from foundation.clock import SystemClock;"
        f"one = ServiceSettings('one', ('/bin/sh', '-c', 'echo $$ >> {seen}; exec sleep 1000'));"
        "asyncio.run(Supervisor((one,), SystemClock(), lambda: 0.0).run())"
    )
    with subprocess.Popen([sys.executable, "-c", program]) as agent:
        asyncio.run(until(lambda: len(pids(seen)) == 1))
        agent.send_signal(signal.SIGKILL)
        agent.wait()
    asyncio.run(until(lambda: not is_alive(pids(seen)[0])))
