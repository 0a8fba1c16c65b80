"""Decisions on the node itself, by its bundle and the real policy: who is allowed what, until when, and why not."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import local_http
from agent.bundle import Bundles
from agent.local import LocalDecisions, LocalSettings, Question, answer_document
from agent.local_http import LocalListener
from foundation.decisionlog.ids import DecisionIds
from foundation.faults import Fault
from foundation.fields import Fields
from foundation.identity import AttestationClass, Posture, State, Verdict
from foundation.reasons import Reason
from foundation.wire.bundle import BundleTerms
from policies.engine import CompiledPolicy
from policies.model import Permit
from policies.settings import PolicySettings
from policies.wasm import WasmEngine
from tests.fakes.clock import ManualClock
from tests.support.bundles import GRANTS, RECORD, FakeAuthority, Keeping

ME = os.getuid()
ROLES = {ME: frozenset({"reader", "agent"}), 1000: frozenset({"reader"}), 1001: frozenset({"boss"})}
TERMS = BundleTerms(refresh=60, stale_after=100, expired_after=1000)


def load(compiled: CompiledPolicy) -> WasmEngine:
    return WasmEngine(compiled, PolicySettings(decision_timeout=5.0))  # a loaded machine is no denial


@dataclass
class Here:
    """One node that decides."""

    clock: ManualClock
    authority: FakeAuthority
    bundles: Bundles
    decisions: LocalDecisions
    records: list[Mapping[str, Any]] = field(default_factory=list)
    room: bool = True

    def record(self, document: Mapping[str, Any]) -> bool:
        self.records.append(document)
        return self.room

    async def refresh(self) -> None:
        await self.bundles.refresh()
        if self.bundles.current is not None:
            await self.decisions.ready.wait()

    def ask(self, route: str = "models", method: str = "GET", path: str = "/models/a", uid: int = ME) -> dict[str, Any]:
        fields = Fields({"route": route, "method": method, "path": path}, "", Reason.MESSAGE_MALFORMED)
        return answer_document(self.decisions.decide(Question.parse(fields, uid)))

    def reasons(self, *words: str, uid: int = ME) -> list[str]:
        return list(self.ask(*words, uid=uid)["reasons"])


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Here]:
    clock = ManualClock()
    authority = FakeAuthority(clock, terms=TERMS)
    bundles = Keeping(tmp_path / "node", authority, clock).start()
    made: Here

    def record(document: Mapping[str, Any]) -> bool:
        return made.record(document)

    decisions = LocalDecisions(ROLES, load, record, DecisionIds(clock), clock)
    made = Here(clock, authority, bundles, decisions)
    bundles.listen(decisions.use)
    task = asyncio.create_task(decisions.run())
    yield made
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_it_decides_as_policy_says(here: Here) -> None:
    await here.refresh()
    allowed = here.ask()
    assert (allowed["allow"], allowed["reasons"], allowed["grant"]) == (True, ["granted"], "read")
    assert (allowed["staleness"], allowed["revision"]) == ("fresh", 1)
    assert here.ask(method="PUT", path="/models/x/y")["grant"] == "push"
    assert here.ask("valve", "POST", "/valve")["grant"] == "turn"
    assert here.reasons("models", "DELETE", "/models/a") == ["method_not_granted"]
    assert here.reasons("models", "GET", "/other") == ["path_not_granted"]
    assert here.reasons("nowhere") == ["route_unknown"]


async def test_a_stream_is_the_gateways_to_decide(here: Here) -> None:
    await here.refresh()
    assert here.ask("database", "GET", "/")["allow"] is False


async def test_a_user_has_its_own_roles_and_none_that_the_node_lacks(here: Here) -> None:
    await here.refresh()
    assert here.ask(uid=1000)["allow"] is True
    assert here.reasons("models", "PUT", "/models/a", uid=1000) == ["method_not_granted"]
    assert here.reasons(uid=1001) == ["role_missing"]
    assert here.reasons(uid=4711) == ["role_missing"]
    here.authority.record = replace(RECORD, roles=("agent",))
    await here.refresh()
    assert here.reasons(uid=1000) == ["role_missing"]


async def test_without_a_bundle_nothing_is_allowed(here: Here) -> None:
    assert here.reasons() == ["bundle_missing"]
    await here.refresh()
    here.authority.fault = Reason.IDENTITY_REVOKED
    await here.bundles.refresh()
    assert here.reasons() == ["bundle_missing"]


async def test_facts_age_by_the_table_of_gateways(here: Here) -> None:
    """standard: policy decides until `expired_after`; critical: only while they are fresh."""
    await here.refresh()
    here.authority.fault = Reason.SERVER_UNREACHABLE
    began = here.clock.now()
    assert here.ask()["until"] == began + TERMS.stale_after
    here.clock.advance(TERMS.stale_after - 1)
    assert here.ask()["staleness"] == "fresh"
    here.clock.advance(1)
    assert (here.ask()["allow"], here.ask()["staleness"]) == (True, "stale")
    assert here.ask()["until"] == began + TERMS.expired_after
    assert here.reasons("valve", "POST", "/valve") == ["staleness_exceeded"]
    here.clock.advance(TERMS.expired_after)
    assert here.reasons() == ["staleness_exceeded"]
    here.authority.fault = None
    await here.refresh()
    assert here.ask()["allow"] is True
    assert here.ask("valve", "POST", "/valve")["allow"] is True


async def test_the_bundles_bound_ends_tolerant_routes_too(here: Here) -> None:
    await here.refresh()
    here.clock.advance(TERMS.expired_after - 1)
    assert (here.ask("manual")["allow"], here.ask("manual")["until"]) == (True, here.clock.now() + 1)
    here.clock.advance(1)
    assert here.reasons("manual") == ["staleness_exceeded"]


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (State.EXPECTED, "identity_unknown"),
        (State.QUARANTINED, "identity_quarantined"),
        (State.REVOKED, "identity_revoked"),
    ],
)
async def test_a_record_that_is_not_active_decides_nothing(here: Here, state: State, reason: str) -> None:
    here.authority.record = replace(RECORD, state=state)
    await here.refresh()
    assert here.reasons() == [reason]


async def test_a_failed_attestation_decides_nothing(here: Here) -> None:
    here.authority.posture = Posture(AttestationClass.VIRTUAL, Verdict.FAILED)
    await here.refresh()
    assert here.reasons() == ["posture_failed"]


async def test_an_attestation_that_had_ended_decides_nothing(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch = here.authority.fetch
    monkeypatch.setattr(here.bundles, "_fetch", lambda have: replace(fetch(have), attested_until=here.clock.now()))
    await here.refresh()
    assert here.reasons() == ["attestation_expired"]


async def test_a_grant_that_ends_is_past_then(here: Here) -> None:
    here.authority.grants = GRANTS.replace("2030-01-01", "2027-01-15T08:01:00Z")
    await here.refresh()
    assert here.ask()["until"] == here.clock.now() + 60
    here.clock.advance(60)
    assert here.reasons() == ["grant_expired"]


async def test_a_new_revision_is_decided_by_once_it_is_loaded(here: Here) -> None:
    await here.refresh()
    here.authority.number, here.authority.grants = 2, GRANTS.replace("role: reader", "role: agent")
    await here.refresh()
    assert here.reasons(uid=1000) == ["role_missing"]
    assert here.ask()["revision"] == 2


async def test_a_policy_that_does_not_load_denies(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(compiled: CompiledPolicy) -> WasmEngine:
        raise Fault(Reason.ENGINE_FAILED)

    monkeypatch.setattr(here.decisions, "_load", fail)
    await here.bundles.refresh()
    for _ in range(100):
        await asyncio.sleep(0)
    assert here.ask()["allow"] is False


async def test_every_decision_is_a_record(here: Here) -> None:
    await here.refresh()
    allowed, denied = here.ask(), here.ask("models", "DELETE", "/models/a", 1000)
    assert [each["id"] for each in here.records] == [allowed["decision"], denied["decision"]]
    assert here.records[0]["allow"] is True
    assert here.records[1].pop("input")["identity"]["roles"] == ["reader"]  # what policy reads, and no more
    assert here.records[1] | {"id": ""} == {
        "id": "",
        "allow": False,
        "reasons": ["method_not_granted"],
        "uid": 1000,
        "roles": ["reader"],
        "route": "models",
        "method": "DELETE",
        "path": "/models/a",
        "grant": "",
        "staleness": "fresh",
        "age": 0.0,
        "numbers": {"policy": 1, "revocations": 0, "postures": 0, "inventory": 0},
    }


async def test_what_policy_was_not_asked_for_has_no_question(here: Here) -> None:
    here.ask()
    assert here.records[0]["reasons"] == ["bundle_missing"]
    assert "input" not in here.records[0]


async def test_a_question_that_a_record_has_no_room_for_is_not_kept(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.local._MAX_ASKED", 10)
    await here.refresh()
    here.ask()
    assert here.records[0]["input"] == {"omitted": "too large"}


async def test_what_cannot_be_put_on_record_is_refused_on_a_critical_route(here: Here) -> None:
    await here.refresh()
    here.room = False
    assert here.ask()["allow"] is True
    assert here.reasons("valve", "POST", "/valve") == ["decision_unrecorded"]


# --- what is asked -----------------------------------------------------------------------------------------


def parse(**document: object) -> Question:
    return Question.parse(Fields(document, "", Reason.MESSAGE_MALFORMED), ME)


_AMBIGUOUS = (
    "",
    "a",
    "//",
    "/a//b",
    "/.",
    "/a/..",
    "/.hidden",
    "/a%2fb",
    "/a b",
    "/a;b",
    "/a?b",
    "/ä",
    "/" + "x" * 2048,
)


@pytest.mark.parametrize("path", _AMBIGUOUS)
def test_a_path_that_can_be_read_in_two_ways_is_refused(path: str) -> None:
    with pytest.raises(Fault) as caught:
        parse(route="r", method="GET", path=path)
    assert caught.value.reason in {Reason.PATH_AMBIGUOUS, Reason.MESSAGE_MALFORMED}


@settings(deadline=None)
@given(st.text(max_size=30))
def test_whatever_path_is_taken_gateways_read_it_the_same(path: str) -> None:
    from gateway.proxy.normalise import canonical

    try:
        question = parse(route="r", method="GET", path=path)
    except Fault:
        return
    request = canonical(b"GET", path.encode(), b"", b"")
    assert (request.path, request.action) == (question.request.path, question.request.action)


@pytest.mark.parametrize("method", ["TRACE", "get", "CONNECT", ""])
def test_other_methods_are_refused(method: str) -> None:
    with pytest.raises(Fault) as caught:
        parse(route="r", method=method, path="/a")
    assert caught.value.reason is Reason.METHOD_UNSUPPORTED


# --- the socket ------------------------------------------------------------------------------------------------

BODY = b'{"route":"models","method":"GET","path":"/models/a"}'


def message(body: bytes = BODY, line: bytes = b"POST /v1/decide HTTP/1.1", *more: bytes) -> bytes:
    head = b"\r\n".join((line, b"Host: here", b"Content-Length: %d" % len(body), *more))
    return head + b"\r\n\r\n" + body


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, Any]]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = int(head.partition("content-length: ")[2].partition("\r")[0])
    return int(head.split()[1]), json.loads(await reader.readexactly(length))


@asynccontextmanager
async def listening(here: Here, folder: Path) -> AsyncIterator[Path]:
    path = folder / "decide.sock"
    listener = LocalListener(path, here.decisions.decide)
    task = asyncio.create_task(listener.run())
    while not path.exists():
        await asyncio.sleep(0.001)
    try:
        yield path
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def ask_once(path: Path, raw: bytes) -> tuple[int, dict[str, Any]]:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(raw)
    answer = await read_answer(reader)
    writer.close()
    return answer


async def test_a_program_asks_over_the_socket(here: Here, tmp_path: Path) -> None:
    await here.refresh()
    async with listening(here, tmp_path) as path:
        reader, writer = await asyncio.open_unix_connection(path)
        for _ in range(3):
            writer.write(message())
            status, document = await read_answer(reader)
            assert (status, document["allow"]) == (200, True)
        writer.write(message() * 20)
        answers = [await read_answer(reader) for _ in range(20)]
        assert len({document["decision"] for _, document in answers}) == 20
        writer.close()
    assert not path.exists()


async def test_curl_asks_too(here: Here, tmp_path: Path) -> None:
    await here.refresh()
    async with listening(here, tmp_path) as path:
        words = ["curl", "-s", "--unix-socket", str(path), "-d", BODY.decode(), "http://here/v1/decide"]
        process = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE)
        assert process.stdout is not None
        answer = json.loads(await process.stdout.read())
        assert await process.wait() == 0
    assert answer["allow"] is True


async def test_the_kernel_says_who_asks(here: Here) -> None:
    await here.refresh()
    code = (
        "import os, socket, sys; os.setuid(1000); s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]);"
        "s.sendall(bytes.fromhex(sys.argv[2])); sys.stdout.write(s.recv(65536).decode())"
    )
    put = message(b'{"route":"models","method":"PUT","path":"/models/a"}', b"POST /v1/decide HTTP/1.1", b"X-Uid: 0")
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        async with listening(here, Path(name)) as path:
            run = partial(subprocess.run, capture_output=True, check=True)
            asking = [[sys.executable, "-c", code, path, raw.hex()] for raw in (message(), put)]
            asked = [await asyncio.to_thread(run, words) for words in asking]
    assert [b'"allow":true' in each.stdout for each in asked] == [True, False]
    assert [each["uid"] for each in here.records] == [1000, 1000]


@pytest.mark.parametrize(
    ("raw", "status", "reason"),
    [
        (message(b"{}"), 400, "message_malformed"),
        (message(BODY[:-1] + b',"uid":0}'), 400, "message_malformed"),
        (message(line=b"GET /v1/decide HTTP/1.1"), 405, "api_method_not_allowed"),
        (message(line=b"POST /v1/other HTTP/1.1"), 404, "api_route_unknown"),
        (b"\x16\x03\x01 nonsense\r\n\r\n", 400, "request_malformed"),
        (message(b"x" * 30_000), 413, "message_too_large"),
        (b"POST /v1/decide HTTP/1.1\r\nA: " + b"x" * 30_000, 413, "message_too_large"),
    ],
)
async def test_what_is_no_question_is_refused(here: Here, tmp_path: Path, raw: bytes, status: int, reason: str) -> None:
    async with listening(here, tmp_path) as path:
        found, document = await ask_once(path, raw)
    assert (found, document["reason"]) == (status, reason)
    assert here.records == []


async def test_connections_are_bounded(here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_http, "MAX_OF_ONE_USER", 2)
    await here.refresh()
    async with listening(here, tmp_path) as path:
        first, second = [await asyncio.open_unix_connection(path) for _ in range(2)]
        for reader, writer in (first, second):
            writer.write(message())
            assert (await read_answer(reader))[0] == 200
        reader, _ = await asyncio.open_unix_connection(path)
        status, document = await read_answer(reader)
        assert (status, document["reason"]) == (429, "connection_limit")
        first[1].close()
        second[1].write(message())
        assert (await read_answer(second[0]))[0] == 200


@pytest.mark.parametrize("section", [{"roles": {"no-such-user": ["a"]}}, {"roles": {"1": "a"}}, {"more": 1}])
def test_settings_that_are_none(section: dict[str, Any]) -> None:
    with pytest.raises(Fault):
        LocalSettings.parse(Fields(section, "agent.local", Reason.SETTING_INVALID))


def test_settings() -> None:
    section = {"socket": "/run/decide.sock", "roles": {"root": ["agent"], "1000": ["reader", "agent"]}}
    parsed = LocalSettings.parse(Fields(section, "agent.local", Reason.SETTING_INVALID))
    assert parsed == LocalSettings(
        Path("/run/decide.sock"), {0: frozenset({"agent"}), 1000: frozenset({"reader", "agent"})}
    )


def test_a_permit_is_made_by_policy_alone() -> None:
    with pytest.raises(TypeError):
        Permit(object(), decision_id="", query=None, answer=None, deadline=0, numbers=None)  # type: ignore[arg-type]
