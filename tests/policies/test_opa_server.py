"""The engine that asks an OPA server: what it loads there, how it finds what was lost, and nobody else's policy."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from foundation.faults import Fault
from foundation.reasons import Reason
from policies.compile import compile_policy
from policies.engine import CompiledPolicy
from policies.model import Answer
from policies.opa_server import OpaServerEngine, rooted
from policies.settings import CompileSettings, PolicySettings
from tests.fakes.clock import ManualClock
from tests.support.engines import SMALL, compiled, one, small
from tests.support.opa import OpaProcess
from tests.support.workspaces import query

ALLOWED = query(route="r", path=("b", "c"), roles=("agent",))
LOST = Answer(False, (Reason.ENGINE_FAILED,))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpaProcess]:
    process = OpaProcess(tmp_path_factory.mktemp("opa"))
    process.start()
    yield process
    process.stop()


@pytest.fixture
def settings(server: OpaProcess) -> PolicySettings:
    return PolicySettings(engine="opa", decision_timeout=5.0, server=server.settings)


@pytest.fixture
async def engine(settings: PolicySettings) -> AsyncIterator[OpaServerEngine]:
    made = await OpaServerEngine.load(small(), settings, ManualClock())
    yield made
    await made.close()


async def test_it_answers_and_explains(engine: OpaServerEngine) -> None:
    found = await engine.decide(ALLOWED)
    assert (found.allow, found.grant, found.deadline) == (True, "g1", 2_000_000_000.5)
    assert await engine.explain(ALLOWED.to_input()) == {"roles": ["agent"], "text": "r at 1800000000"}
    assert engine.decide_now(ALLOWED) is None


async def test_two_revisions_live_at_once(engine: OpaServerEngine, settings: PolicySettings) -> None:
    denying = compile_policy({**SMALL, **_denying()}, {}, CompileSettings())
    other = await OpaServerEngine.load(denying, settings, ManualClock())
    assert (await engine.decide(ALLOWED)).allow
    assert not (await other.decide(ALLOWED)).allow
    await other.close()
    assert (await engine.decide(ALLOWED)).allow


async def test_closing_takes_everything_away(server: OpaProcess, settings: PolicySettings) -> None:
    before = set(server.policies()), set(server.data())
    made = await OpaServerEngine.load(small(), settings, ManualClock())
    assert len(server.policies()) == len(before[0]) + 4  # two modules and two doors
    await made.close()
    assert set(server.policies()) == before[0]
    assert set(server.data()) == before[1]


async def test_modules_load_in_whatever_order_they_need(settings: PolicySettings) -> None:
    chain = {f"m{number}.rego": _link(number) for number in range(6)}
    policy = compile_policy({**one("decision := data.chain0.f(input.route)"), **chain}, {}, CompileSettings())
    made = await OpaServerEngine.load(policy, settings, ManualClock())
    assert await made._ask("sallyport/decision", ALLOWED.to_input()) == "r"
    await made.close()


async def test_files_that_need_each_other_are_refused(server: OpaProcess, settings: PolicySettings) -> None:
    before = set(server.policies())
    pair = {
        "a.rego": b"package a\nf(x) := data.b.g(x)\nh(x) := x\n",
        "b.rego": b"package b\ng(x) := data.a.h(x)\n",
    }
    policy = compile_policy({**one("decision := data.a.f(1)"), **pair}, {}, CompileSettings())
    with pytest.raises(Fault) as caught:
        await OpaServerEngine.load(policy, settings, ManualClock())
    assert caught.value.reason is Reason.ENGINE_FAILED
    assert caught.value.field == "a.rego"
    assert set(server.policies()) == before


async def test_a_server_that_restarted_denies_until_the_policy_is_back(tmp_path: Path) -> None:
    process = OpaProcess(tmp_path)
    process.start()
    clock = ManualClock()
    made = await OpaServerEngine.load(small(), PolicySettings(decision_timeout=5.0, server=process.settings), clock)
    try:
        process.stop()
        assert (await made.decide(ALLOWED)).reasons == (Reason.ENGINE_UNREACHABLE,)
        process.start()
        assert await made.decide(ALLOWED) == LOST  # too soon after the last load to begin another
        assert made._reloading is None
        clock.advance(1.0)
        assert await made.decide(ALLOWED) == LOST
        assert made._reloading is not None
        await made._reloading
        assert (await made.decide(ALLOWED)).allow
    finally:
        await made.close()
        process.stop()


async def test_a_policy_that_is_there_in_part_does_not_answer(engine: OpaServerEngine) -> None:
    """A server that restarted while it was loaded has what came after: the mark, which came first, is gone."""
    await engine._client.delete_data(f"{engine._root}_mark")
    assert await engine.decide(ALLOWED) == LOST
    await engine._client.update_or_create_data({"whole": True}, f"{engine._root}_mark")
    assert (await engine.decide(ALLOWED)).allow


async def test_the_mark_goes_first_and_the_door_last(settings: PolicySettings) -> None:
    order: list[str] = []
    made = OpaServerEngine(small(), settings, ManualClock())
    await made._client._init_session()
    put_data, put_policy = made._client.update_or_create_data, made._client.update_policy_from_string

    async def data(document: dict[str, object], name: str) -> bool:
        order.append(name)
        return bool(await put_data(document, name))

    async def policy(text: str, name: str, **options: bool) -> bool:
        order.append(name)
        return bool(await put_policy(text, name, **options))

    made._client.update_or_create_data, made._client.update_policy_from_string = data, policy
    await made._push()
    root = made._root
    assert order[:2] == [f"{root}_mark", root]
    assert order[-2:] == [f"{root}_door/decision", f"{root}_door/explain"]
    await made.close()


async def test_closing_while_it_loads_again_ends_the_load(settings: PolicySettings) -> None:
    clock = ManualClock()
    made = await OpaServerEngine.load(small(), settings, clock)
    await made._client.delete_data(f"{made._root}_mark")
    clock.advance(2)
    assert await made.decide(ALLOWED) == LOST
    await made.close()
    assert made._reloading is not None
    assert made._reloading.done()


async def test_closing_without_a_server_is_quiet(tmp_path: Path) -> None:
    process = OpaProcess(tmp_path)
    process.start()
    made = await OpaServerEngine.load(small(), PolicySettings(server=process.settings), ManualClock())
    process.stop()
    await made.close()


async def test_many_ask_at_once(engine: OpaServerEngine) -> None:
    answers = await asyncio.gather(*(engine.decide(ALLOWED) for _ in range(200)))
    assert all(answer.allow for answer in answers)


async def test_a_query_that_is_no_utf8_never_leaves(engine: OpaServerEngine) -> None:
    odd = ALLOWED._replace(request=replace(ALLOWED.request, path=("\ud800",)))
    assert await engine.decide(odd) == LOST


async def test_an_undefined_decision_is_no_answer(settings: PolicySettings) -> None:
    made = await OpaServerEngine.load(compiled('decision := 1 if input.route == "x"'), settings, ManualClock())
    assert (await made.decide(ALLOWED)).reasons == (Reason.ENGINE_ANSWER_INVALID,)
    assert made._reloading is None  # it is loaded: nothing is to be repaired
    await made.close()


async def test_old_rego_is_not_rewritten(settings: PolicySettings) -> None:
    """The client offers to turn what the server refuses into something that it takes."""
    old = CompiledPolicy("d", b"", {"one.rego": b"package sallyport\ndecision { input.x }\nexplain = 1\n"}, {}, ())
    with pytest.raises(Fault) as caught:
        await OpaServerEngine.load(old, settings, ManualClock())
    assert caught.value.reason is Reason.ENGINE_FAILED


@pytest.mark.parametrize(
    ("text", "moved"),
    [
        ("package sallyport", "package R.sallyport"),
        ("# data\npackage sallyport.x\nimport data.a.b as c", "# data\npackage R.sallyport.x\nimport data.R.a.b as c"),
        ("x := data.a[input.data]", "x := data.R.a[input.data]"),
        ("x := data[input.x]", "x := data.R[input.x]"),
        ("x := count(data)", "x := count(data.R)"),
        ('x := data["a"].data', 'x := data.R["a"].data'),
        ('x := "data.a" # data.a', 'x := "data.a" # data.a'),
        ("x := `data\ndata.a`", "x := `data\ndata.a`"),
        ('x := "\\"data" + data.a', 'x := "\\"data" + data.R.a'),
        ("some x in data.a", "some x in data.R.a"),
        ("p with data.a as data.b", "p with data.R.a as data.R.b"),
        ("metadata.x := mydata", "metadata.x := mydata"),
        ("import input.data as y", "import input.data as y"),
        ("x := {data.a: [data.b]}", "x := {data.R.a: [data.R.b]}"),
        ("x := a-data.b", "x := a-data.R.b"),
    ],
)
def test_everything_below_data_moves_below_the_root(text: str, moved: str) -> None:
    assert rooted(text, "R") == moved


def _denying() -> dict[str, bytes]:
    text = (
        SMALL["main.rego"]
        .replace(b'"reasons": ["granted"]', b'"reasons": ["policy_denied"]')
        .replace(b'"allow": true', b'"allow": false')
    )
    return {"main.rego": text}


def _link(number: int) -> bytes:
    body = f"f(x) := data.chain{number + 1}.f(x)" if number < 5 else "f(x) := x"
    return f"package chain{number}\n{body}\n".encode()
