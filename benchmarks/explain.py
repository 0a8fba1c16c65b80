"""How long an explanation takes when ten million decisions are on record: from the ID to the whole of it, in process,
by the default policy with 200 routes and 500 grants.

The records are written by the decision log itself, closed segments compressed as ever; identities, paths and routes are
drawn as a fleet would ask (`benchmarks.decision.fleet`). What is on disk is put out of the page cache before the
measurement, and each ID is asked for once: permits, for which the end of their stream is looked for too, and denials.
"""

from __future__ import annotations

import asyncio
import os
import random
import resource
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from benchmarks.decision import GRANTS, NODES, ROLES, ROUTES, fleet
from benchmarks.figure import Figure, at_most
from foundation.decisionlog.closing import SegmentCloser
from foundation.decisionlog.log import DecisionLog
from foundation.decisionlog.settings import DecisionLogSettings
from foundation.identity import SnapshotNumbers
from foundation.ports import AuditEvent, DecisionEntry
from gateway.api.explaining import Explainer
from gateway.proxy.record import entry_of
from gateway.proxy.route import RouteTable
from gateway.snapshot import PolicyPart, SnapshotStore
from policies.compile import compile_policy
from policies.engine import PolicyEngine
from policies.lifecycle.workspace import default_policy, load_workspace
from policies.loading import load_engine
from policies.model import FOREVER, Decision, judge
from policies.settings import CompileSettings, PolicySettings
from tests.fakes.clock import ManualClock
from tests.support.workspaces import fleet_workspace

RECORDS, SHORT = 10_000_000, 200_000
ASKED = 500
GOAL_MS = 100
SEGMENT_BYTES = 16 << 20
_TURN = 4096  # decisions in one turn of the event loop
_NUMBERS = SnapshotNumbers(1, 0, 0, 0)
_BEGIN, _STEP = 1_800_000_000.0, 1e-4
_COMMAND = "python -m benchmarks.run explain"
_LIMITS = DecisionLogSettings(Path(), SEGMENT_BYTES, 1 << 42)


class _NoAudit:
    """Implements `foundation.ports.AuditLog`: the digests of closed segments go nowhere."""

    async def append(self, event: AuditEvent) -> int:
        return 0


@dataclass
class _Written:
    """Some of the IDs on record, drawn at random, and how long the writing took."""

    ids: list[str]
    seconds: float


def figures(short: bool) -> Iterator[Figure]:
    """The figures of this benchmark, measured now; `short` with few records."""
    with tempfile.TemporaryDirectory(prefix="sallyport-explain-") as folder:
        times = asyncio.run(_measure(Path(folder), SHORT if short else RECORDS))
    yield at_most("explain_10m_ms", _at(times, 0.5) * 1e3, "ms", GOAL_MS, _COMMAND)
    yield at_most("explain_10m_p99_ms", _at(times, 0.99) * 1e3, "ms", GOAL_MS, _COMMAND)


async def _measure(folder: Path, records: int) -> list[float]:
    workspace = load_workspace(fleet_workspace(ROUTES, GRANTS, ROLES), default_policy())
    compiled = await asyncio.to_thread(compile_policy, workspace.rego, workspace.data, CompileSettings())
    engine = await load_engine(compiled, PolicySettings(decision_timeout=5.0))
    clock, store = ManualClock(_BEGIN), SnapshotStore()
    store.publish_policy(PolicyPart(1, "", engine, RouteTable(workspace.routes)))
    settings = DecisionLogSettings(folder / "decisions", _LIMITS.segment_bytes, _LIMITS.total_bytes)
    closer = SegmentCloser(settings, _NoAudit())
    log = await DecisionLog.open(settings, clock, closer)
    try:
        written = await _write(log, closer, clock, await _decisions(engine), records)
        _report(written, records, settings.directory)
        explain = Explainer(store, log, _none_kept)
        await explain(written.ids[0])  # code and policy are warm; the records are not
        _forget_pages(settings.directory)
        return sorted([await _seconds(explain, each) for each in written.ids[1:]])
    finally:
        await log.close()
        await engine.close()


async def _write(
    log: DecisionLog, closer: SegmentCloser, clock: ManualClock, decisions: Sequence[Decision], records: int
) -> _Written:
    """Put `records` decisions on record, the popular ones most often (Zipf)."""
    chance, begun = random.Random(1), time.monotonic()  # noqa: S311 - a load, not a secret
    wanted = set(chance.sample(range(records), ASKED + 1))
    ids, entry = list[str](), None
    for place, chosen in enumerate(_zipf(chance, decisions, records)):
        clock.set_wall(_BEGIN + place * _STEP)
        entry = _entry(chosen, log.ids(), clock.now())
        log.record(entry)
        if place in wanted:
            ids.append(entry.id)
        if place % _TURN == 0:
            log.flush(entry)
            await asyncio.sleep(0)
        if place % (100 * _TURN) == 0:
            await closer.finish()  # full segments are closed beside the writing, which must not run away from it
    assert entry is not None
    log.flush(entry)
    await closer.finish()
    chance.shuffle(ids)
    return _Written(ids, time.monotonic() - begun)


def _entry(decision: Decision, decision_id: str, at: float) -> DecisionEntry:
    query = decision.query
    assert query is not None
    request = query.request
    entry = entry_of(decision, str(query.identity.id), request.method.encode(), request.target, None, at)
    entry.id, entry.route = decision_id, query.route
    return entry


async def _decisions(engine: PolicyEngine) -> list[Decision]:
    return [
        judge("", each, await engine.decide(each), FOREVER, _NUMBERS)
        for each in fleet(random.Random(1), NODES, GRANTS)  # noqa: S311 - as above
    ]


def _zipf(chance: random.Random, items: Sequence[Decision], count: int) -> Iterator[Decision]:
    weights = list(accumulate(1 / rank for rank in range(1, len(items) + 1)))
    while count > 0:
        batch = min(count, 65_536)
        yield from chance.choices(items, cum_weights=weights, k=batch)
        count -= batch


async def _seconds(explain: Explainer, decision_id: str) -> float:
    begun = time.perf_counter()
    found = await explain(decision_id)
    taken = time.perf_counter() - begun
    assert found.decision == decision_id
    assert found.explained_by == 1
    assert found.allowed or found.near_misses or len(found.sentences) > 0
    return taken


async def _none_kept(revision: int) -> None:
    return None


def _forget_pages(folder: Path) -> None:
    """So that what is asked for comes from the disk, as after a day."""
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def _report(written: _Written, records: int, folder: Path) -> None:
    files, peak = list(folder.iterdir()), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    segments, disk = sum(path.suffix == ".gz" for path in files), sum(path.stat().st_size for path in files)
    print(
        f"{records:,} records in {segments} closed segments, {disk / (1 << 20):,.0f} MiB on disk, "
        f"written in {written.seconds:.0f} s; {peak} MiB of memory at most"
    )


def _at(ordered: Sequence[float], share: float) -> float:
    return ordered[int(len(ordered) * share)]
