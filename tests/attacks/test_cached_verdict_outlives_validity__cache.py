"""attacks.md, gateway: "cached verdict outlives validity". The cache's half: a kept answer is gone when its grant ends,
when the identity's epoch rises, when a fact that policy reads changes, and when policy or data do; an error is never
kept. The gateway's half compares the other deadlines on every request.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from foundation.identity import AttestationClass, Posture, SnapshotNumbers, Verdict
from foundation.reasons import Reason
from policies.cache import DecisionCache
from policies.cached import CachedEngine
from policies.compile import compile_policy
from policies.model import Denial, Permit, Query, judge
from policies.settings import CacheSettings, CompileSettings
from tests.support.engines import HASTY, SMALL, compiled, small, wasm
from tests.support.workspaces import query

END = 1_800_000_060
ASKED = query(route="short", path=("a",), roles=("agent",))
NUMBERS = SnapshotNumbers(1, 1, 1, 1)


@pytest.fixture
def cached() -> Iterator[CachedEngine]:
    with wasm(small()) as engine:
        yield CachedEngine(engine, small(), DecisionCache(CacheSettings()))


async def test_until_the_grant_ends_and_not_a_second_longer(cached: CachedEngine) -> None:
    assert (await cached.decide(ASKED)).allow
    for now in (END - 60, END - 1):
        assert cached.peek(ASKED._replace(now=now)) is not None
    for now in (END, END + 1, END + 1_000_000):
        assert (await cached.decide(ASKED)).allow  # kept again
        assert cached.peek(ASKED._replace(now=now)) is None


async def test_what_is_judged_of_an_ended_grant_is_a_denial(cached: CachedEngine) -> None:
    before, after = ASKED, ASKED._replace(now=END)
    permit = judge("1", before, await cached.decide(before), float("inf"), NUMBERS)
    assert isinstance(permit, Permit)
    assert permit.deadline == END
    denial = judge("2", after, await cached.decide(after), float("inf"), NUMBERS)
    assert isinstance(denial, Denial)
    assert denial.reason is Reason.GRANT_EXPIRED


@pytest.mark.parametrize(
    "changed",
    [
        ASKED._replace(identity=replace(ASKED.identity, epoch=ASKED.identity.epoch + 1)),
        ASKED._replace(identity=replace(ASKED.identity, roles=())),
        ASKED._replace(identity=replace(ASKED.identity, labels={"barred": "yes"})),
        ASKED._replace(posture=Posture(AttestationClass.VIRTUAL, Verdict.FAILED)),
        ASKED._replace(route="r2"),
        query(route="short", path=("a", "b"), roles=("agent",)),
    ],
)
async def test_a_changed_fact_is_decided_anew(cached: CachedEngine, changed: Query) -> None:
    assert (await cached.decide(ASKED)).allow
    assert cached.peek(changed) is None


async def test_a_failed_attestation_denies_at_once(cached: CachedEngine) -> None:
    assert (await cached.decide(ASKED)).allow
    failed = ASKED._replace(posture=Posture(AttestationClass.VIRTUAL, Verdict.FAILED))
    assert (await cached.decide(failed)).reasons == (Reason.POSTURE_FAILED,)


async def test_a_new_revision_is_decided_anew() -> None:
    """One cache before two revisions: the digest is in the key."""
    cache = DecisionCache(CacheSettings())
    withdrawn = compile_policy(SMALL, {"workspace": {"grants": {}}}, CompileSettings())
    with wasm(small()) as first, wasm(withdrawn) as second:
        assert (await CachedEngine(first, small(), cache).decide(ASKED)).allow
        assert not (await CachedEngine(second, withdrawn, cache).decide(ASKED)).allow


async def test_an_error_is_not_kept() -> None:
    """A decision that took too long once is no verdict on who asked."""
    rule = 'decision := {"allow": true, "reasons": ["granted"]} if not slow\n'
    slow = "slow if { some x in data.n; some y in data.n; some z in data.n; x < y; y < z; z < x }"
    policy = compiled(rule + slow, {"n": list(range(700))})
    cache = DecisionCache(CacheSettings())
    with wasm(policy, HASTY) as hasty:
        cached = CachedEngine(hasty, policy, cache)
        assert (await cached.decide(ASKED)).reasons == (Reason.ENGINE_TIMEOUT,)
        assert cached.peek(ASKED) is None
    assert len(cache) == 0
