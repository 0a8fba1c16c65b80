"""Decisions on this node, for its own programs, by its bundle: when no gateway answers, and when one does.

A program asks whether this node may do something on a route; who asks is known by the kernel (the user at the other end
of the socket), and each user has roles that the settings give it, of those that the node itself has.

Steps of a decision, in this order; the first refusal stands:
 1. a bundle is there, and its policy is loaded
 2. the user has a role here that the node still has
 3. the bundle's bound (`expired_after`) has not passed, by trust time; here that holds for `tolerant` routes too
 4. the node's record is active
 5. its attestation had not failed, nor ended, when the authority last spoke
 6. policy answers, with the staleness class of the bundle's age (`policies.staleness`)
 7. the decision is on record; one of a `critical` route is refused when it cannot be

What an attestation proves of the boot is proven again by the bundle itself: it opens in that boot state alone. Neither
the attestation's end nor the certificate's ends what is decided here, for nobody was there to renew them: the bundle's
bound does. Rates and other obligations of a permit go to who asked, who must meet them.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import logging
import pwd
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from agent.bundle import Held
from foundation.clock import Clock
from foundation.decisionlog.line import OMITTED
from foundation.decisionlog.masking import Mask
from foundation.faults import Fault
from foundation.fields import Fields
from foundation.identity import AttestationClass, SnapshotNumbers, State, Verdict
from foundation.reasons import Reason
from policies.engine import CompiledPolicy
from policies.frozen import Freezer
from policies.model import ACTIONS, FOREVER, Answer, CanonicalRequest, Decision, Denial, Permit, Query, judge
from policies.settings import PolicySettings
from policies.staleness import staleness

_NO_NUMBERS = SnapshotNumbers(0, 0, 0, 0)
_CRITICAL = "critical"
_SEGMENT = re.compile(r"[A-Za-z0-9_~-][A-Za-z0-9._~-]*", re.ASCII)
_MAX_PATH = 2048
_MAX_ASKED = 8 * 1024  # bytes: half of what a record may have
_MAX_UID = 2**32 - 2
_STATES = {
    State.EXPECTED: Reason.IDENTITY_UNKNOWN,
    State.QUARANTINED: Reason.IDENTITY_QUARANTINED,
    State.REVOKED: Reason.IDENTITY_REVOKED,
}
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LocalSettings:
    """Section `[agent.local]`. `socket` is where programs ask; empty: nobody does, and no policy engine is loaded.
    `roles` has users (numbers, or names of this machine) and the roles of each."""

    socket: Path | None = None
    roles: dict[int, frozenset[str]] = field(default_factory=dict)

    @classmethod
    def parse(cls, fields: Fields) -> LocalSettings:
        """Raises `Fault(SETTING_INVALID | SETTING_UNKNOWN)`."""
        path = fields.text("socket", "", max_length=107)  # sockaddr_un
        section = fields.section("roles", optional=True)
        roles = {_uid(section, user): frozenset(section.texts(user, most=32)) for user in section.names}
        fields.finish()
        return cls(Path(path) if path else None, roles)


def _uid(section: Fields, user: str) -> int:
    if user.isascii() and user.isdecimal() and int(user) <= _MAX_UID:
        return int(user)
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        raise section.fault(user, "there is no such user on this machine") from None


@dataclass(frozen=True, slots=True)
class Question:
    """What a program of the user `uid` asks. `request` is canonical, as policy sees it."""

    uid: int
    route: str
    request: CanonicalRequest

    @classmethod
    def parse(cls, fields: Fields, uid: int) -> Question:
        """`{"route", "method", "path", "host"}`; the last may be missing. Only paths that can be read in one way are
        taken: segments of letters, digits, `-`, `_`, `~` and dots that do not come first. Raises
        `Fault(MESSAGE_MALFORMED | PATH_AMBIGUOUS | METHOD_UNSUPPORTED)`."""
        route, method = fields.text("route", max_length=63), fields.text("method", max_length=16)
        path, host = fields.text("path", max_length=_MAX_PATH), fields.text("host", "", max_length=253)
        fields.finish()
        if method not in ACTIONS:
            raise Fault(Reason.METHOD_UNSUPPORTED, field="method")
        request = CanonicalRequest(method, ACTIONS[method], host, _segments(path), (), "", path.encode())
        return cls(uid, route, request)


def _segments(path: str) -> tuple[str, ...]:
    first, *segments = path.split("/")
    if first or not segments:
        raise Fault(Reason.PATH_AMBIGUOUS, "expected an absolute path", field="path")
    if segments == [""]:
        return ()
    plain = segments[:-1] if segments[-1] == "" else segments
    if not all(_SEGMENT.fullmatch(segment) for segment in plain):
        raise Fault(Reason.PATH_AMBIGUOUS, "a local question has plain segments alone", field="path")
    return tuple(segments)


@dataclass(frozen=True, slots=True)
class LocalAnswer:
    """A decision, and what it rests on: the class of the bundle's age, and that age in seconds. `asked` is what the
    record keeps of the question (`policies.frozen`), nothing where policy was not asked."""

    decision: Decision
    staleness: str = ""
    age: float = 0.0
    asked: bytes = b""


class LocalEngine(Protocol):
    """A loaded policy; `policies.wasm.WasmEngine` is one."""

    def decide_now(self, query: Query) -> Answer: ...

    def stop(self) -> None: ...


Load = Callable[[CompiledPolicy], LocalEngine]
"""Loads a policy. Blocks. Raises `Fault(ENGINE_FAILED)`."""
Record = Callable[[Mapping[str, Any]], bool]
"""Puts a decision on record; False when it had to be dropped."""


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A policy at work: its revision, its digest, and what keeps the part of a question that it can read."""

    number: int
    digest: str
    engine: LocalEngine
    freeze: Freezer


def refusal(held: Held | None, now: float) -> Reason | None:
    """Steps 1 and 3 to 5: why nothing may be decided by `held` at `now`, or None."""
    if held is None:
        return Reason.BUNDLE_MISSING
    bundle = held.bundle
    if now - bundle.at >= bundle.terms.expired_after:
        return Reason.STALENESS_EXCEEDED
    if bundle.record.state is not State.ACTIVE:
        return _STATES[bundle.record.state]
    if bundle.posture.verdict is not Verdict.PASSED:
        return Reason.POSTURE_FAILED
    if bundle.posture.attestation is not AttestationClass.NONE and bundle.at >= bundle.attested_until:
        return Reason.ATTESTATION_EXPIRED
    return None


class LocalDecisions:
    """Decides by the newest bundle, for users with `roles`. Give its `use` to `Bundles.listen`, and keep `run` running:
    it loads policies."""

    def __init__(
        self,
        roles: Mapping[int, frozenset[str]],
        load: Load,
        record: Record,
        decision_id: Callable[[], str],
        time: Clock,
    ) -> None:
        self._roles = roles
        self._load = load
        self._record = record
        self._decision_id = decision_id
        self._time = time
        self._held: Held | None = None
        self._loaded: _Loaded | None = None
        self._news = asyncio.Event()
        self.ready = asyncio.Event()
        """Set while the policy of the present bundle is loaded."""

    def use(self, held: Held | None) -> None:
        """Decide by `held` from now on. Until its policy is loaded, within a second, by the policy before."""
        self._held = held
        self.ready.clear()
        self._news.set()

    async def run(self) -> None:
        """Load each policy that comes, until cancelled."""
        try:
            while True:
                await self._news.wait()
                self._news.clear()
                await self._reload()
        finally:
            self._replace(None)

    def decide(self, question: Question) -> LocalAnswer:
        """The decision, which is on record."""
        answer = self._judge(question)
        if self._put_on_record(question, answer) or not self._is_critical(question.route):
            return answer
        decision = answer.decision
        denial = Denial(decision.id, decision.query, (Reason.DECISION_UNRECORDED,), decision.numbers)
        return replace(answer, decision=denial)

    def _judge(self, question: Question) -> LocalAnswer:
        now, held, loaded = self._time.now(), self._held, self._loaded
        stands = refusal(held, now)
        if held is None or loaded is None:
            return self._refused(stands or Reason.BUNDLE_MISSING)
        record = held.bundle.record
        roles = self._roles.get(question.uid, frozenset()).intersection(record.roles)
        if stands is not None or not roles:
            return self._refused(stands or Reason.ROLE_MISSING)
        age, until = staleness(held.bundle.at, now, held.bounds)
        identity = replace(record, roles=tuple(sorted(roles)))
        query = Query(int(now), identity, held.bundle.posture, question.route, question.request, age)
        numbers = held.bundle.numbers._replace(policy=loaded.number)
        given = loaded.engine.decide_now(query)
        decision = judge(self._decision_id(), query, given, until, numbers)
        return LocalAnswer(decision, age.value, now - held.bundle.at, loaded.freeze(query))

    def _refused(self, reason: Reason) -> LocalAnswer:
        numbers = self._held.bundle.numbers if self._held else _NO_NUMBERS
        return LocalAnswer(Denial(self._decision_id(), None, (reason,), numbers))

    def _is_critical(self, route: str) -> bool:
        """A route that is not known is: nothing is lost by refusing it."""
        if self._held is None:
            return True
        rows = self._held.compiled.data.get("workspace", {}).get("routes", {})
        return bool(rows.get(route, {}).get("class", _CRITICAL) == _CRITICAL)

    def _put_on_record(self, question: Question, answer: LocalAnswer) -> bool:
        decision = answer.decision
        asked = answer.asked if len(answer.asked) <= _MAX_ASKED else OMITTED
        return self._record(
            {
                "id": decision.id,
                "allow": isinstance(decision, Permit),
                "reasons": [reason.code for reason in decision.reasons],
                "uid": question.uid,
                "roles": sorted(self._roles.get(question.uid, ())),
                "route": question.route,
                "method": question.request.method,
                "path": question.request.target.decode(),
                "grant": decision.grant if isinstance(decision, Permit) else "",
                "staleness": answer.staleness,
                "age": round(answer.age, 3),
                "numbers": decision.numbers._asdict(),
            }
            | ({"input": json.loads(asked)} if asked else {})
        )

    async def _reload(self) -> None:
        held = self._held
        if held is None:
            self._replace(None)
            return
        if self._loaded is None or self._loaded.digest != held.compiled.digest:
            try:
                engine = await asyncio.to_thread(self._load, held.compiled)
            except Fault as fault:
                _LOG.error("a policy does not load: %s", fault)
                self._replace(None)
                return
            freeze = Freezer(held.compiled.reads, Mask.forgetful())
            self._replace(_Loaded(held.number, held.compiled.digest, engine, freeze))
        else:
            self._loaded = replace(self._loaded, number=held.number)
        if self._held is held:
            self.ready.set()

    def _replace(self, loaded: _Loaded | None) -> None:
        before, self._loaded = self._loaded, loaded
        if before is not None:
            before.engine.stop()


def load_wasm(compiled: CompiledPolicy) -> LocalEngine:
    """The embedded engine with this policy. Raises `Fault(ENGINE_FAILED)`."""
    from policies.wasm import WasmEngine  # noqa: PLC0415  # wasmtime is large: only where decisions are made here

    engine = WasmEngine(compiled, PolicySettings())
    _give_back_memory()
    return engine


def _give_back_memory() -> None:
    """What the compiler needed, some 6 MB, goes back to the kernel; glibc would keep it (malloc_trim(3))."""
    with contextlib.suppress(AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def answer_document(answer: LocalAnswer) -> dict[str, Any]:
    """What goes to who asked."""
    decision = answer.decision
    document: dict[str, Any] = {
        "allow": isinstance(decision, Permit),
        "decision": decision.id,
        "reasons": [reason.code for reason in decision.reasons],
        "staleness": answer.staleness,
        "age": round(answer.age, 3),
        "revision": decision.numbers.policy,
    }
    if isinstance(decision, Permit):
        until = None if decision.deadline == FOREVER else decision.deadline
        obligations = [{"kind": each.kind, **each.parameters} for each in decision.obligations]
        return document | {"grant": decision.grant, "until": until, "obligations": obligations}
    return document | {"meaning": decision.reason.meaning, "remedy": decision.reason.remedy}
