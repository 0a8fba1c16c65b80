"""The operators' way to ask who can reach what: of the revision that is enforced and the identities that are known.

An engine of its own answers, in a thread, one question at a time: requests wait neither for it nor for its answers.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from foundation.api import Answer, ApiRoute, Call
from foundation.clock import Clock
from foundation.faults import Fault
from foundation.identity import AttestationClass, IdentityRecord
from foundation.reasons import Reason
from gateway.proxy.decide import refusal_by_fixed_rule
from gateway.snapshot import Snapshot, SnapshotStore
from gateway.standing import standing_of
from policies.access.asking import Policy, Subject, Tick
from policies.access.loaded import loaded
from policies.access.telling import Asked, what_document, who_document, why_explanation
from policies.model import FOREVER
from policies.settings import PolicySettings

MAX_QUESTIONS = 200_000
MAX_SECONDS = 20.0  # the API's shell waits for 30
_NAME = "access.show"
_ROUTE = "/v1/access/routes/{route}"
_IDENTITY = "/v1/access/identities/{kind}/{name}"
_Question = Callable[[Policy, tuple[Subject, ...], int, Tick], Any]


class AccessApi:
    """Handlers over this gateway's own state. `settings` bound the engine."""

    def __init__(self, store: SnapshotStore, settings: PolicySettings, clock: Clock) -> None:
        self._store = store
        self._settings = settings
        self._clock = clock
        self._busy = asyncio.Lock()

    def routes(self) -> list[ApiRoute]:
        why = f"{_IDENTITY}/routes/{{route}}"
        return [
            ApiRoute(_NAME, "GET", _ROUTE, self.who, "Who can reach a route, by which grant, until when"),
            ApiRoute(_NAME, "GET", _IDENTITY, self.what, "What an identity can reach, by which grant, until when"),
            ApiRoute(_NAME, "GET", why, self.why, "Why an identity may or may not", query=("method", "path", "to")),
        ]

    async def who(self, call: Call) -> Answer:
        route = call.parameters["route"]

        def ask(policy: Policy, subjects: tuple[Subject, ...], now: int, tick: Tick) -> Any:
            return who_document(policy, route, subjects, now, MAX_QUESTIONS, tick)

        return await self._answer(ask)

    async def what(self, call: Call) -> Answer:
        def ask(policy: Policy, subjects: tuple[Subject, ...], now: int, tick: Tick) -> Any:
            return what_document(policy, _named(subjects, call), subjects, now, MAX_QUESTIONS, tick)

        return await self._answer(ask)

    async def why(self, call: Call) -> Answer:
        route, asked = call.parameters["route"], Asked(*(call.query.get(name, "") for name in Asked._fields))

        def ask(policy: Policy, subjects: tuple[Subject, ...], now: int, tick: Tick) -> Any:
            return why_explanation(policy, _named(subjects, call), subjects, route, asked, now).to_json()

        return await self._answer(ask)

    async def _answer(self, question: _Question) -> Answer:
        """Raises `Fault(OVERLOADED)` while another question is under way, and `Fault(REVISION_MISSING)`."""
        if self._busy.locked():
            raise Fault(Reason.OVERLOADED, "another question about access is under way")
        async with self._busy:
            with _while_awaited(self._clock) as tick:
                return await asyncio.to_thread(self._ask, self._store.current, question, tick)

    def _ask(self, snapshot: Snapshot, question: _Question, tick: Tick) -> Answer:
        enforced, now = snapshot.policy, self._clock.now()
        if enforced is None or enforced.compiled is None:
            raise Fault(Reason.REVISION_MISSING)
        subjects = tuple(self._subject(snapshot, record, now) for record in snapshot.inventory.values())
        with loaded(enforced.compiled, enforced.revision, self._settings) as policy:
            return Answer.of(question(policy, subjects, int(now), tick))

    def _subject(self, snapshot: Snapshot, record: IdentityRecord, now: float) -> Subject:
        """`record` with what else the gateway knows. Of its certificates, revocation of all is known here, no date."""
        standing, until = standing_of(snapshot, record.id, ""), FOREVER
        if standing.posture.attestation is not AttestationClass.NONE:
            until = self._store.attested_until(record.id)
        return Subject(
            record, standing.posture, refusal_by_fixed_rule(snapshot, standing, -FOREVER, FOREVER, until, now)
        )


@contextmanager
def _while_awaited(clock: Clock) -> Iterator[Tick]:
    """Says that it is enough once the time is up, or nobody waits for the answer any more."""
    over, end = threading.Event(), clock.monotonic() + MAX_SECONDS
    try:
        yield lambda _: not over.is_set() and clock.monotonic() < end
    finally:
        over.set()


def _named(subjects: tuple[Subject, ...], call: Call) -> Subject:
    kind, name = call.parameters["kind"], call.parameters["name"]
    for each in subjects:
        if (each.record.id.kind, each.record.id.name) == (kind, name):
            return each
    raise Fault(Reason.NOT_FOUND, f"no {kind[:16]} {name[:64]!r} in the inventory", field="identity")
