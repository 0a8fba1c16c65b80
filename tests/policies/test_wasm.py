"""The embedded engine's bounds: time, memory, and what it does after one was reached."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.faults import Fault
from foundation.reasons import Reason
from policies.model import Answer
from policies.settings import PolicySettings
from policies.wasm import Ticker, WasmEngine
from tests.support.engines import GRANTS, HASTY, answer, compiled, small, wasm
from tests.support.workspaces import query

ALLOWED = query(route="r", path=("b", "c"), roles=("agent",))


def test_a_grant_permits_with_its_end_and_obligations() -> None:
    with wasm(small()) as engine:
        found = engine.decide_now(ALLOWED)
    assert (found.allow, found.reasons, found.grant, found.deadline) == (True, (Reason.GRANTED,), "g1", 2_000_000_000.5)
    assert found.obligations[0].kind == "rate"
    assert dict(found.obligations[0].parameters) == {"per_second": 5, "burst": 10}


def test_answers_do_not_leak_from_one_evaluation_to_the_next() -> None:
    """The heap begins anew each time, and stays where it is."""
    with wasm(small()) as engine:
        for _ in range(2_000):
            assert engine.decide_now(ALLOWED).allow
            assert not engine.decide_now(query(route="r", path=("x" * 50,), roles=("agent",))).allow
        assert engine._instance is not None
        assert engine._instance._memory.data_len(engine._instance._store) < 2 << 20


def test_an_evaluation_without_end_is_ended() -> None:
    policy = compiled("decision := count([1 | some x in numbers.range(1, input.n); x % 7 == 0])")
    with wasm(policy, HASTY) as engine:
        with pytest.raises(Fault) as caught:
            answer(engine, {"n": 100_000_000})
        assert caught.value.reason in {Reason.ENGINE_TIMEOUT, Reason.ENGINE_FAILED}
        assert answer(engine, {"n": 14}) == 2  # in a new instance


def test_time_is_bounded_by_the_epoch() -> None:
    loop = "decision if { some x in input.n; some y in input.n; some z in input.n; x < y; y < z; z < x }\n"
    loop += "decision if input.n == [1]"
    with wasm(compiled(loop), HASTY) as engine:
        with pytest.raises(Fault) as caught:
            answer(engine, {"n": list(range(2_000))})
        assert caught.value.reason is Reason.ENGINE_TIMEOUT
        assert answer(engine, {"n": [1]}) is True


def test_memory_is_bounded() -> None:
    policy = compiled('decision := count(concat(",", [input.text | some _ in numbers.range(1, input.n)]))')
    patient = replace(HASTY, decision_timeout=20.0)
    with wasm(policy, patient) as engine:
        with pytest.raises(Fault) as caught:
            answer(engine, {"text": "x" * 1_000_000, "n": 100})
        assert caught.value.reason is Reason.ENGINE_FAILED
        assert answer(engine, {"text": "x", "n": 2}) == 3


def test_a_large_input_grows_the_memory_within_its_bound() -> None:
    with wasm(compiled("decision := count(input.text)"), replace(HASTY, decision_timeout=20.0)) as engine:
        assert answer(engine, {"text": "x" * 3_000_000}) == 3_000_000
        with pytest.raises(Fault):
            answer(engine, {"text": "x" * 40_000_000})
        assert answer(engine, {"text": "x"}) == 1


def test_data_larger_than_the_memory_is_refused_at_once() -> None:
    with pytest.raises(Fault) as caught:
        WasmEngine(compiled("decision := 1", {"big": "x" * 12_000_000}), replace(HASTY, memory=8 << 20))
    assert caught.value.reason is Reason.ENGINE_FAILED


def test_an_answer_is_bounded() -> None:
    with wasm(compiled("decision := [input.text | some _ in numbers.range(1, 50)]")) as engine, pytest.raises(Fault):
        answer(engine, {"text": "x" * 100_000})


def test_two_rules_that_disagree_are_a_denial() -> None:
    policy = compiled(
        'decision := {"allow": true, "reasons": ["granted"]} if input.route == "r"\n'
        'decision := {"allow": false, "reasons": ["no_grant"]} if input.request.method == "GET"'
    )
    with wasm(policy) as engine:
        assert engine.decide_now(ALLOWED) == Answer(False, (Reason.ENGINE_FAILED,))


@pytest.mark.parametrize(
    "decision",
    [
        'decision := {"allow": true}',
        'decision := {"allow": true, "reasons": []}',
        'decision := {"allow": 1, "reasons": ["granted"]}',
        'decision := {"allow": "true", "reasons": ["granted"]}',
        'decision := {"allow": true, "reasons": ["no_grant"]}',
        'decision := {"allow": true, "reasons": ["granted"], "more": 1}',
        "decision := true",
        'decision := {"allow": true, "reasons": ["granted"]} if input.route == "elsewhere"',
    ],
)
def test_what_is_no_answer_is_a_denial(decision: str) -> None:
    with wasm(compiled(decision)) as engine:
        assert engine.decide_now(ALLOWED) == Answer(False, (Reason.ENGINE_ANSWER_INVALID,))


def test_a_query_that_is_no_utf8_is_a_denial() -> None:
    with wasm(small()) as engine:
        odd = ALLOWED._replace(request=replace(ALLOWED.request, path=("\ud800",)))
        assert engine.decide_now(odd) == Answer(False, (Reason.ENGINE_FAILED,))
        assert engine.decide_now(ALLOWED).allow


@pytest.mark.parametrize("document", [b"", b"{", b"\xff", b"nul"])
def test_an_input_that_is_no_json_is_a_fault(document: bytes) -> None:
    """OPA would evaluate with `input` undefined."""
    with wasm(compiled("decision := input")) as engine, pytest.raises(Fault):
        engine.evaluate("sallyport/decision", document)


@pytest.mark.parametrize("text", ["", "a\0b", "é", "😀", '"\\', "\u2028", "\x7f", "a" * 5000, "\\u0000"])
def test_texts_pass_unchanged(text: str) -> None:
    with wasm(compiled("decision := input.text")) as engine:
        assert answer(engine, {"text": text}) == text


@pytest.fixture(scope="module")
def echo() -> Iterator[WasmEngine]:
    with wasm(compiled("decision := input")) as engine:
        yield engine


def test_no_two_texts_are_one() -> None:
    """Wasm takes the escapes that spell U+20000 for U+10000; the engine sends none."""
    same = 'decision := {"allow": true, "reasons": ["granted"]} if input.request.path[0] == "\\ud800\\udc00"'
    with wasm(compiled(same)) as engine:
        for text, allowed in (("\U00010000", True), ("\U00020000", False), ("\U0010ffff", False)):
            asked = ALLOWED._replace(request=replace(ALLOWED.request, path=(text,)))
            assert engine.decide_now(asked).allow is allowed


_SCALARS = st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(
    st.dictionaries(
        st.text("ab\0é", max_size=3), st.recursive(_SCALARS, lambda below: st.lists(below, max_size=3), max_leaves=8)
    )
)
@settings(max_examples=300, deadline=None)
def test_whatever_is_json_is_the_input(echo: WasmEngine, document: dict[str, object]) -> None:
    assert answer(echo, document) == document


def test_wasm_that_is_none_is_refused() -> None:
    with pytest.raises(Fault) as caught:
        WasmEngine(replace(small(), wasm=b"\0asm garbage"), PolicySettings())
    assert caught.value.reason is Reason.ENGINE_FAILED


def test_a_closed_engine_denies() -> None:
    with wasm(small()) as engine:
        pass
    assert engine.decide_now(ALLOWED) == Answer(False, (Reason.ENGINE_FAILED,))


def test_data_is_loaded_once() -> None:
    with wasm(small()) as engine:
        assert json.loads(engine._loaded.data) == GRANTS
        assert engine._instance is not None
        instance = engine._instance
        assert engine.decide_now(ALLOWED).allow
        assert engine._instance is instance


async def test_the_explanation_is_a_document() -> None:
    with wasm(small()) as engine:
        assert await engine.explain(ALLOWED.to_input()) == {"roles": ["agent"], "text": "r at 1800000000"}
    with wasm(compiled("decision := 1\nexplained if input.x")) as engine:
        assert await engine.explain(ALLOWED.to_input()) == {}


def test_what_passes_is_processor_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has none for an evaluation breaks nothing off, though not for ever."""
    now = [0.0]
    monkeypatch.setattr("policies.wasm._cpu_of", lambda clock: now[0])
    ticker = object.__new__(Ticker)
    ticker._interval, ticker._running, ticker._seen, ticker._stood = 0.01, {}, {}, 0
    ticker._awake = threading.Event()
    ticker.begin("who")
    assert not ticker._has_moved()  # the first look
    for _ in range(3):
        now[0] += 0.01
        assert ticker._has_moved()
    stood = 0
    while not ticker._has_moved():
        stood += 1
    assert 10 < stood < 100
    ticker.end("who")
    assert not ticker._has_moved()
