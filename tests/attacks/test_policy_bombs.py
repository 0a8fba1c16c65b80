"""attacks.md, gateway: "policy bombs". Deep nesting, huge ranges, regex blow-up, 1 GB strings: bounded, and the gateway
keeps serving.

Policy text is hostile when it is compiled, and what it does is hostile when it is evaluated. Every bomb here would go
off: each proof takes one bound away and sees its test fail.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from foundation.faults import Fault
from foundation.reasons import Reason
from policies.compile import compile_policy
from policies.opa_server import OpaServerEngine
from policies.paced import PacedEngine
from policies.settings import CompileSettings, PolicySettings, SlowSettings
from policies.wasm import WasmEngine, _Instance
from tests.fakes.clock import ManualClock
from tests.support.engines import compiled, one, wasm
from tests.support.opa import OpaProcess
from tests.support.workspaces import query

SETTINGS = CompileSettings()
LIMITS = PolicySettings(decision_timeout=0.2, memory=16 << 20)


def refused(
    rego: dict[str, bytes], data: dict[str, object] | None = None, settings: CompileSettings = SETTINGS
) -> Fault:
    with pytest.raises(Fault) as caught:
        compile_policy(rego, data or {}, settings)
    return caught.value


# --- While it is compiled ---------------------------------------------------------------------------------------------


def test_more_text_than_allowed() -> None:
    padding = b"# " + b"x" * 1_100_000
    fault = refused({**one("decision := 1"), "big.rego": b"package big\n" + padding})
    assert (fault.reason, "bytes of Rego" in fault.detail) == (Reason.POLICY_BOMB, True)


def test_more_files_than_allowed() -> None:
    many = {f"m{number}.rego": b"package m" for number in range(257)}
    assert refused({**one("decision := 1"), **many}).reason is Reason.POLICY_BOMB


@pytest.mark.parametrize(
    ("opening", "closing"), [("[", "]"), ("{", "}"), ("(", ")"), ('{"a": [', "]}"), ("[ # ]\n", "]")]
)
def test_brackets_nested_deep(opening: str, closing: str) -> None:
    text = "decision :=\n" + opening * 5_000 + "1" + closing * 5_000
    fault = refused(one(text))
    assert fault.reason is Reason.POLICY_BOMB
    assert fault.field.startswith("one.rego:")


def test_brackets_in_texts_and_comments_nest_nothing() -> None:
    compile_policy(one('decision := "' + "[" * 500 + '" # ' + "{" * 500), {}, SETTINGS)


def test_data_nested_deep() -> None:
    data: dict[str, object] = {}
    for _ in range(5_000):
        data = {"a": data}
    assert refused(one("decision := 1"), data).reason is Reason.POLICY_BOMB


def test_more_data_than_allowed() -> None:
    fault = refused(one("decision := 1"), {"a": "x" * 2_000}, replace(SETTINGS, max_data=1_000))
    assert fault.reason is Reason.POLICY_BOMB


def test_a_compiler_without_end_is_killed_with_its_children(tmp_path: Path) -> None:
    stand_in, children = tmp_path / "opa", tmp_path / "children"
    stand_in.write_text(f"#!/bin/sh\nsleep 600 & echo $! >> {children}\necho $$ >> {children}\nwait\n")
    stand_in.chmod(0o755)
    begun = time.monotonic()
    fault = refused(one("decision := 1"), settings=replace(SETTINGS, opa=str(stand_in), timeout=1.0))
    assert fault.reason is Reason.POLICY_BOMB
    assert time.monotonic() - begun < 60
    for line in children.read_text().split():
        assert _ended(int(line)), "a child of the compiler lives on"


def test_a_compiler_writes_no_more_than_its_bound(tmp_path: Path) -> None:
    stand_in = tmp_path / "opa"
    stand_in.write_text("#!/bin/sh\nexec cat /dev/zero\n")
    stand_in.chmod(0o755)
    fault = refused(one("decision := 1"), settings=replace(SETTINGS, opa=str(stand_in), timeout=60.0))
    assert (fault.reason, "took more than" in fault.detail) == (Reason.POLICY_BOMB, False)


def test_a_compiler_gets_no_more_memory_than_its_bound() -> None:
    """OPA itself, in less address space than a Go program needs."""
    assert refused(one("decision := 1"), settings=replace(SETTINGS, memory=256 << 20)).reason is Reason.POLICY_BOMB


# --- While it is evaluated --------------------------------------------------------------------------------------------

BOMBS = {
    "loops": "some x in numbers.range(1, 700); some y in data.many; some z in data.many; x < y; y < z; z < x",
    "ranges": "count(numbers.range(1, 1000000000)) > 0",
    "text": 'count(concat("", [text | some _ in data.many; some _ in data.many; text := data.text])) > 0',
    "sets": "count({[x, y] | some x in data.many; some y in data.many}) == 0",
    "walk": "count([1 | walk(data.many, [_, a]); walk(data.many, [_, b]); a != b]) < 0",
}
HARMLESS = {
    "regex": 'regex.match("^(a+)+$", data.text)',
    "regex alternation": 'regex.match("^(a|a|aa|aaa)*b$", data.text)',
    "glob": 'glob.match("*a*a*a*a*a*a*a*a*b", [], substring(data.text, 0, 200))',
}
DATA = {"many": list(range(700)), "text": "a" * 20_000 + "!"}
PERMIT = '{"allow": true, "reasons": ["granted"]}'


def rules(bombs: dict[str, str]) -> str:
    """Permits, unless the route is the name of a bomb. Then it permits too, if the bomb ever ends."""
    lines = [f"default decision := {PERMIT}"]
    for name, body in bombs.items():
        lines.append(
            f'decision := {{"allow": false, "reasons": ["no_grant"]}} if {{ input.route == "{name}"; {body} }}'
        )
    return "\n".join(lines)


@pytest.fixture(scope="module")
def engine() -> Iterator[WasmEngine]:
    with wasm(compiled(rules(BOMBS), DATA), LIMITS) as made:
        yield made


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_a_denial_and_the_engine_serves_on(engine: WasmEngine, bomb: str) -> None:
    for _ in range(2):
        answer = engine.decide_now(query(route=bomb))
        assert not answer.allow
        assert answer.reasons[0] in {Reason.ENGINE_TIMEOUT, Reason.ENGINE_FAILED}
        assert engine.decide_now(query(route="r")).allow


def test_loops_end_by_time_and_texts_by_memory(engine: WasmEngine) -> None:
    assert engine.decide_now(query(route="loops")).reasons == (Reason.ENGINE_TIMEOUT,)
    assert engine.decide_now(query(route="text")).reasons == (Reason.ENGINE_FAILED,)


@pytest.mark.parametrize("expression", HARMLESS.values(), ids=HARMLESS)
def test_patterns_do_not_blow_up(expression: str) -> None:
    with wasm(
        compiled(f"decision := {PERMIT} if not {expression}", DATA), replace(LIMITS, decision_timeout=5.0)
    ) as made:
        assert made.decide_now(query()).allow


class Spied:
    """Notes in which thread, and for how many ticks, policy is evaluated."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.seen: list[tuple[bool, int]] = []
        evaluate, loop = _Instance.evaluate, threading.current_thread()

        def spy(instance: _Instance, entrypoint: str, document: bytes, ticks: int) -> bytes:
            self.seen.append((threading.current_thread() is loop, ticks))
            return evaluate(instance, entrypoint, document, ticks)

        patch.setattr(_Instance, "evaluate", spy)


async def test_a_bomb_keeps_no_event_loop_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is broken off there after a few ticks and ends in a thread; the loop turns meanwhile."""
    engine = PacedEngine(WasmEngine(compiled(rules({"loops": BOMBS["loops"]}), DATA), LIMITS), LIMITS)
    spied, turns = Spied(monkeypatch), 0
    bomb = asyncio.create_task(engine.decide(query(route="loops")))
    while not bomb.done():
        await asyncio.sleep(0)
        turns += 1
    assert (await bomb).reasons == (Reason.ENGINE_TIMEOUT,)
    ticks_here = [ticks for here, ticks in spied.seen if here]
    assert [here for here, _ in spied.seen] == [*[True] * len(ticks_here), False]
    assert max(ticks_here) * 4 < spied.seen[-1][1]
    assert turns > 10
    assert (await engine.decide(query(route="r"))).allow
    await engine.close()


async def test_bombs_beyond_the_threads_and_their_queue_are_denied_at_once() -> None:
    limits = replace(LIMITS, slow=SlowSettings(threads=1, waiting=1))
    engine = PacedEngine(WasmEngine(compiled(rules({"loops": BOMBS["loops"]}), DATA), limits), limits)
    answers = await asyncio.gather(*(engine.decide(query(route="loops")) for _ in range(6)))
    reasons = [answer.reasons[0] for answer in answers]
    assert reasons.count(Reason.ENGINE_OVERLOADED) == 4
    assert (await engine.decide(query(route="r"))).allow
    await engine.close()


async def test_a_bomb_on_an_opa_server_is_a_denial_too(tmp_path: Path) -> None:
    process = OpaProcess(tmp_path)
    process.start()
    settings = PolicySettings(decision_timeout=1.0, server=process.settings)
    try:
        made = await OpaServerEngine.load(compiled(rules({"ranges": BOMBS["ranges"]}), DATA), settings, ManualClock())
        assert (await made.decide(query(route="ranges"))).reasons == (Reason.ENGINE_TIMEOUT,)
        assert (await made.decide(query(route="r"))).allow
        await made.close()
    finally:
        process.stop()


def _ended(pid: int) -> bool:
    for _ in range(200):
        try:
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.05)
    return False
