"""attacks.md, gateway: "credentials on record". Who reads the decision log learns no credential that travelled in a
request: of a query string, and of what policy reads of it, equality alone is kept; of what policy does not read,
nothing."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from foundation.decisionlog.closing import SegmentCloser
from foundation.decisionlog.log import DecisionLog
from foundation.decisionlog.masking import Mask
from foundation.decisionlog.segments import segment_paths
from foundation.decisionlog.settings import DecisionLogSettings
from foundation.identity import SnapshotNumbers
from gateway.proxy.normalise import canonical
from gateway.proxy.record import entry_of
from policies.cache import DecisionCache
from policies.cached import CachedEngine
from policies.model import FOREVER, Query, judge
from policies.settings import CacheSettings
from tests.fakes.audit import MemoryAuditLog
from tests.fakes.clock import ManualClock
from tests.support.decisions import read_segment
from tests.support.engines import compiled, wasm
from tests.support.workspaces import query

SECRET = "hunter2-hunter2"
MASK = Mask(bytes(32))
# What it reads: nothing of the query, the whole of it, or everything there is.
POLICIES = {
    "path alone": 'decision := {"allow": false, "reasons": ["no_grant"]} if input.request.path',
    "the query": 'decision := {"allow": false, "reasons": ["no_grant"]} if input.request.query[_][1] != "x"',
    "everything": 'decision := {"allow": false, "reasons": ["no_grant"]} if count(input) > 0',
}


def asked(token: str) -> Query:
    request = canonical(b"GET", b"/v1/files?access_token=%b&x=1" % token.encode(), b"gateway.test", b"")
    return query()._replace(request=request)


@pytest.mark.parametrize("decision", POLICIES.values(), ids=POLICIES)
async def test_the_log_tells_no_credential(decision: str, tmp_path: Path) -> None:
    settings, audit = DecisionLogSettings(tmp_path), MemoryAuditLog()
    log = await DecisionLog.open(settings, ManualClock(), SegmentCloser(settings, audit), mask=MASK)
    policy = compiled(decision)
    with wasm(policy) as engine:
        cached = CachedEngine(engine, policy, DecisionCache(CacheSettings()), MASK)
        for token in (SECRET, SECRET, "another"):
            question = asked(token)
            answer = await cached.decide(question)
            made = judge(log.ids(), question, answer, FOREVER, SnapshotNumbers(1, 0, 0, 0))
            log.record(entry_of(made, "id", b"GET", question.request.target, None, 1.0))
            await asyncio.sleep(0)
    await log.close()
    kept = b"".join(read_segment(path) for path in segment_paths(tmp_path))
    assert kept.count(b"\n") == 3
    assert SECRET.encode() not in kept
    assert b"another" not in kept
    first, second, third = [json.loads(line)["target"] for line in kept.splitlines()]
    assert first == second != third  # what is equal can still be seen to be
