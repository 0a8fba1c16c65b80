"""Hot state at a real Redis server that is killed, flushed, stopped and started again: what is absent refuses, nothing
becomes usable twice, and service returns by itself."""

from __future__ import annotations

import asyncio
import logging
import re
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.demo.free_ports import free_ports
from foundation.faults import Fault
from foundation.fields import Fields
from foundation.hotstate import HotStateSettings, MemoryHotState, Swap, open_hot_state
from foundation.hotstate.redis import RedisHotState
from foundation.hotstate.settings import RedisSettings
from foundation.reasons import Reason
from tests.fakes.clock import ManualClock
from tests.support.certificates import SmallAuthority
from tests.support.processes import PATIENCE
from tests.support.redis import RedisServer, redis_server

LONG = 1000.0


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with redis_server() as started:
        yield started


@asynccontextmanager
async def at(settings: RedisSettings) -> AsyncIterator[RedisHotState]:
    state = RedisHotState(settings)
    try:
        yield state
    finally:
        await state.close()


@pytest.fixture
async def state(server: RedisServer) -> AsyncIterator[RedisHotState]:
    async with at(server.settings) as opened:
        yield opened


async def refusal(state: RedisHotState) -> Fault:
    """Why the simplest call is refused."""
    with pytest.raises(Fault) as caught:
        await state.generation()
    return caught.value


async def until_it_answers(state: RedisHotState) -> None:
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                await state.generation()
            except Fault:
                await asyncio.sleep(0.01)
            else:
                return


# --- nothing becomes usable twice ---------------------------------------------------------------------------


async def test_of_a_hundred_takers_at_three_clients_one_gets_it(server: RedisServer) -> None:
    async with at(server.settings) as one, at(server.settings) as two, at(server.settings) as three:
        for _ in range(5):
            await one.put_once("session", b"secret", LONG)
            clients = [one, two, three] * 34
            taken = await asyncio.gather(*(client.take("session") for client in clients[:100]))
            assert [value for value in taken if value is not None] == [b"secret"]


async def test_what_was_taken_does_not_come_back_from_disk_with_a_restarted_server(
    server: RedisServer, state: RedisHotState
) -> None:
    generation = await state.generation()
    await state.put_once("session", b"secret", LONG)
    with server.raw() as raw:
        raw.save()
    assert await state.take("session") == b"secret"
    server.kill()
    server.start()
    with server.raw() as raw:
        assert [key for key in raw.scan_iter() if key.endswith(b"/session")]  # it did come back
    async with at(server.settings) as another:
        assert await another.take("session") is None
    assert await state.take("session") is None
    assert await state.generation() != generation


async def test_after_a_flush_nothing_is_there_and_a_mark_of_single_use_shows_that_it_was_lost(
    server: RedisServer, state: RedisHotState
) -> None:
    issued = await state.generation()
    assert await state.put_once("used/7", b"", LONG)
    assert await state.generation() == issued
    with server.raw() as raw:
        raw.flushall()
    assert await state.put_once("used/7", b"", LONG)  # the key is free again: alone that would permit
    assert await state.generation() != issued


async def test_a_flush_while_calls_are_under_way_lets_nobody_have_what_was_before(
    server: RedisServer, state: RedisHotState
) -> None:
    await state.put_once("session", b"before", LONG)
    with server.raw() as raw:
        raw.flushall()
        answers = await asyncio.gather(*(state.take("session") for _ in range(50)))
        assert answers == [None] * 50
        assert await state.put_once("session", b"after", LONG)
        raw.delete("sallyport/generation")  # as if only that had been lost
    assert await state.get("session") is None


async def test_all_clients_agree_on_the_generation(server: RedisServer) -> None:
    async with at(server.settings) as one, at(server.settings) as two:
        for _ in range(3):
            with server.raw() as raw:
                raw.flushall()
            first, second = await asyncio.gather(one.generation(), two.generation())
            assert first == second == await one.generation()
            assert await one.put_once("k", b"", LONG)
            assert not await two.put_once("k", b"", LONG)


async def test_a_call_that_was_given_up_is_done_at_most_once(server: RedisServer, state: RedisHotState) -> None:
    await state.put_once("session", b"secret", LONG)
    server.freeze()
    with pytest.raises(Fault):
        await state.take("session")
    server.thaw()
    await until_it_answers(state)
    assert [await state.take("session"), await state.take("session")] in ([None, None], [b"secret", None])


# --- what is absent refuses, and returns by itself ------------------------------------------------------------


async def test_a_killed_server_refuses_every_call_and_serves_again_once_it_is_back(
    server: RedisServer, state: RedisHotState
) -> None:
    await asyncio.gather(*(state.put_once(f"k{n}", b"", LONG) for n in range(50)))
    server.kill()
    calls = [
        state.put_once("k", b"", LONG),
        state.get("k0"),
        state.get_many(["k0"]),
        state.take("k0"),
        state.delete("k0"),
        state.swap([Swap("k0", b"", None)], LONG),
        state.generation(),
    ]
    for answer in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(answer, Fault)
        assert answer.reason is Reason.HOT_STATE_UNAVAILABLE
        assert not answer.detail  # where the server is, is our own affair
    server.start()
    await asyncio.gather(*(state.put_once(f"k{n}", b"new", LONG) for n in range(50)))
    assert await state.get("k0") == b"new"


async def test_a_server_that_dies_in_the_midst_of_calls_answers_or_refuses_each(
    server: RedisServer, state: RedisHotState
) -> None:
    async def put(number: int) -> bool | Fault:
        try:
            return await state.put_once(f"k{number}", b"", LONG)
        except Fault as fault:
            return fault

    calls = [asyncio.ensure_future(put(number)) for number in range(400)]
    while not any(call.done() for call in calls):
        await asyncio.sleep(0)
    server.kill()
    answers = await asyncio.gather(*calls)
    assert all(answer is True or isinstance(answer, Fault) for answer in answers)
    assert any(isinstance(answer, Fault) for answer in answers)


async def test_a_server_that_says_nothing_holds_nobody_up(server: RedisServer, state: RedisHotState) -> None:
    await state.put_once("k", b"value", LONG)
    server.freeze()
    async with asyncio.timeout(PATIENCE / 2):
        answers = await asyncio.gather(*(state.get("k") for _ in range(100)), return_exceptions=True)
        async with at(server.settings) as another:
            assert (await refusal(another)).reason is Reason.HOT_STATE_UNAVAILABLE
    assert all(isinstance(each, Fault) and each.reason is Reason.HOT_STATE_UNAVAILABLE for each in answers)
    server.thaw()
    await until_it_answers(state)
    assert await state.get("k") == b"value"


async def test_a_cancelled_call_leaves_no_answer_to_the_next(server: RedisServer) -> None:
    async with at(replace(server.settings, connections=1, timeout=5.0)) as state:
        await state.put_once("a", b"of a", LONG)
        await state.put_once("b", b"of b", LONG)
        server.freeze()
        call = asyncio.ensure_future(state.get("a"))
        await asyncio.sleep(0.01)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        server.thaw()
        assert await state.get("b") == b"of b"


async def test_connections_are_bounded(server: RedisServer) -> None:
    async with at(replace(server.settings, connections=3)) as state:
        await asyncio.gather(*(state.put_once(f"k{n}", b"", LONG) for n in range(300)))
        with server.raw() as raw:
            assert len(raw.client_list()) <= 3 + 1


async def test_each_failure_and_each_return_is_told_once(
    server: RedisServer, state: RedisHotState, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    server.kill()
    for _ in range(3):
        await refusal(state)
    server.start()
    await until_it_answers(state)
    told = [record.message for record in caplog.records if record.name == "foundation.hotstate.redis"]
    assert ["cannot be used" in told[0], "answers again" in told[1], len(told)] == [True, True, 2]


# --- which server is good enough -------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
async def test_a_server_that_may_push_entries_out_is_refused(policy: str) -> None:
    with redis_server("--maxmemory-policy", policy) as server:
        async with at(server.settings) as state:
            fault = await refusal(state)
            assert fault.reason is Reason.HOT_STATE_UNSAFE
            assert "noeviction" in fault.detail
            with server.raw() as raw:
                raw.config_set("maxmemory-policy", "noeviction")
            await state.generation()


async def test_a_server_that_follows_another_is_refused(server: RedisServer) -> None:
    with redis_server("--replicaof", "127.0.0.1 1") as replica:
        async with at(replica.settings) as state:
            assert (await refusal(state)).reason is Reason.HOT_STATE_UNSAFE


async def test_namespaces_do_not_meet(server: RedisServer) -> None:
    async with at(server.settings) as one, at(replace(server.settings, namespace="other")) as other:
        assert await one.put_once("k", b"one", LONG)
        assert await other.put_once("k", b"other", LONG)
        assert [await one.get("k"), await other.get("k")] == [b"one", b"other"]


INFO = b"run_id:abc\r\nmaxmemory_policy:noeviction\r\nrole:master\r\ncluster_enabled:0\r\n"
GREETING = [b"$%d\r\n%s\r\n" % (len(INFO), INFO), b"$7\r\nabc:def\r\n"]
NONSENSE = """
:1|$-1|*0|*-1|*1~:7|*1~$-1|*2~$1~=~:1|+OK|$2~\xff\xff|$99999999999|%1~:1~:2|-ERR no|-GENERATION x|-MOVED 1 a:1|-LOADING
"""
SAID = st.one_of(
    st.binary(max_size=40),
    st.sampled_from(NONSENSE.strip().split("|")).map(lambda text: f"{text}~".encode("latin-1").replace(b"~", b"\r\n")),
)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, len(GREETING)), SAID)
def test_a_server_that_talks_nonsense_is_as_good_as_absent(sane: int, said: bytes) -> None:
    asyncio.run(ask_liar(GREETING[:sane], said))


async def ask_liar(sane: list[bytes], said: bytes) -> None:
    async with liar(sane, said) as path, at(RedisSettings(path=path, timeout=0.03)) as state:
        for call in (
            state.generation(),
            state.get_many(["a", "b"]),
            state.take("a"),
            state.swap([Swap("a", None, b"")], LONG),
        ):
            try:
                await call
            except Fault as fault:
                if fault.reason not in (Reason.HOT_STATE_UNAVAILABLE, Reason.HOT_STATE_UNSAFE):
                    raise


@asynccontextmanager
async def liar(sane: list[bytes], said: bytes, pause: float = 0.0) -> AsyncIterator[Path]:
    """A server that answers each command by the next that is sane, and then the same for ever."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        left = list(sane)
        while data := await reader.read(1 << 16):
            for name in re.findall(rb"\*\d+\r\n\$\d+\r\n(\w+)", data):
                await asyncio.sleep(pause)
                writer.write(b"+OK\r\n" if name == b"CLIENT" else left.pop(0) if left else said)
        writer.close()

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "socket"
        async with await asyncio.start_unix_server(answer, path):
            yield path


async def test_a_server_that_takes_its_time_with_each_answer_has_that_of_one_call_for_all() -> None:
    for timeout, answers in ((5.0, True), (0.15, False)):
        async with liar(GREETING, b"+abc:def\r\n", 0.1) as path, at(RedisSettings(path=path, timeout=timeout)) as state:
            if answers:
                assert await state.generation() == "abc:def"
            else:
                assert (await refusal(state)).reason is Reason.HOT_STATE_UNAVAILABLE


# --- who we are, and who it is ----------------------------------------------------------------------------------

PASSWORD = "a-long-one-4711"
ALLOWED = ["+eval", "+info", "+get", "+set", "+del", "+pexpire"]  # as docs/operations.md says


async def test_a_password_comes_from_its_file_each_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "password"
    file.touch(mode=0o600)
    file.write_text("wrong\n")
    with redis_server() as server:
        with server.raw() as raw:
            raw.execute_command("ACL", "SETUSER", "gate", "on", f">{PASSWORD}", "~sallyport/*", *ALLOWED)
            raw.execute_command("ACL", "SETUSER", "default", "off")
        settings = replace(server.settings, user="gate", password_file=file)
        async with at(settings) as state:
            assert (await refusal(state)).reason is Reason.HOT_STATE_UNAVAILABLE
            file.write_text(PASSWORD + "\n")
            assert await state.put_once("k", b"", LONG)
            assert await state.swap([Swap("k", b"", b"")], LONG) == [True]
            assert await state.take("k") == b""
            await state.delete("k")
            file.chmod(0o644)
        async with at(settings) as state:
            fault = await refusal(state)
            assert fault.reason is Reason.HOT_STATE_UNAVAILABLE
    assert PASSWORD not in caplog.text
    assert "file_mode_unsafe" in caplog.text


async def test_tls_is_verified_by_the_named_ca_alone(tmp_path: Path) -> None:
    ours, strange = authority(tmp_path / "ours"), authority(tmp_path / "strange")
    pair, (port,) = ours.server("redis"), free_ports(1)
    words = ["--tls-port", str(port), "--tls-cert-file", str(pair.certificate), "--tls-key-file", str(pair.key)]
    with redis_server(*words, "--tls-ca-cert-file", str(ours.root), "--tls-auth-clients", "no"):
        settings = RedisSettings(host="localhost", port=port, tls=True, ca=ours.root)
        async with at(settings) as state:
            assert await state.put_once("k", b"", LONG)
        async with at(replace(settings, ca=strange.root)) as state:
            assert (await refusal(state)).reason is Reason.HOT_STATE_UNAVAILABLE


def authority(folder: Path) -> SmallAuthority:
    folder.mkdir()
    return SmallAuthority(folder)


# --- settings ------------------------------------------------------------------------------------------------------


def parsed(**redis: object) -> HotStateSettings:
    return HotStateSettings.parse(
        Fields({"redis": redis}, "hotstate", Reason.SETTING_INVALID, unknown=Reason.SETTING_UNKNOWN)
    )


def test_settings_name_a_server() -> None:
    assert parsed(url="unix:///run/redis.sock").redis == RedisSettings(path=Path("/run/redis.sock"))
    assert parsed(url="redis://127.0.0.1:7000", database=3).redis == RedisSettings(
        host="127.0.0.1", port=7000, database=3
    )
    assert parsed(url="rediss://redis.example", ca="/ca.pem").redis == RedisSettings(
        host="redis.example", port=6379, tls=True, ca=Path("/ca.pem")
    )


@pytest.mark.parametrize(
    ("redis", "field"),
    [
        ({}, "url"),
        ({"url": "http://x"}, "url"),
        ({"url": "unix://run/redis.sock"}, "url"),
        ({"url": "redis://redis.example:6379"}, "url"),
        ({"url": "redis://:secret@localhost"}, "url"),
        ({"url": "rediss://user:secret@redis.example", "ca": "/ca.pem"}, "url"),
        ({"url": "redis://localhost/3"}, "url"),
        ({"url": "redis://localhost:99999"}, "url"),
        ({"url": "redis://localhost:6379?db=3"}, "url"),
        ({"url": "rediss://redis.example"}, "ca"),
        ({"url": "unix:///s", "user": "gate"}, "user"),
        ({"url": "unix:///s", "certificate": "/c"}, "certificate"),
        ({"url": "unix:///s", "timeout": "1m"}, "timeout"),
        ({"url": "unix:///s", "timeout": "0s"}, "timeout"),
        ({"url": "unix:///s", "password": "secret"}, ""),
    ],
)
def test_wrong_settings_are_refused_and_show_no_secret(redis: dict[str, object], field: str) -> None:
    with pytest.raises(Fault) as caught:
        parsed(**redis)
    assert caught.value.field == (f"hotstate.redis.{field}" if field else "hotstate.redis")
    assert "secret" not in str(caught.value)


def test_the_backend_is_what_the_settings_name(tmp_path: Path) -> None:
    clock = ManualClock()
    assert isinstance(open_hot_state(HotStateSettings(), clock), MemoryHotState)
    settings = HotStateSettings(redis=RedisSettings(path=tmp_path / "redis.sock"))
    assert isinstance(open_hot_state(settings, clock), RedisHotState)
