"""Obligations that keep state: a permit whose obligation is not met is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from foundation.reasons import Reason
from policies.model import FOREVER, Answer, Obligation
from tests.support.gateway import RawUpstream, gateway_to


def obliging(kind: str, **parameters: Any) -> Answer:
    return Answer(True, (Reason.GRANTED,), "g-1", FOREVER, (Obligation(kind, parameters),))


async def test_requests_of_an_identity_are_bounded_by_its_grant(tmp_path: Path) -> None:
    async with gateway_to(RawUpstream(), tmp_path) as plane:
        plane.know("edge-2")
        plane.engine.answer = lambda query: obliging("rate", per_second=2, burst=3)
        one, again, other = await plane.connect(), await plane.connect(), await plane.connect(plane.pair("edge-2"))
        assert [(await one.get()).status for _ in range(3)] == [200] * 3
        refused = await again.get()  # another connection is no other identity
        assert (refused.status, refused.reason, refused.header("retry-after")) == (429, "rate_limited", "1")
        assert (await other.get()).status == 200
        await plane.advance(0.5)
        assert [(await one.get()).status for _ in range(2)] == [200, 429]
        assert [entry.reasons for entry in plane.recorded.entries].count(("rate_limited",)) == 2
        assert plane.metrics.answers.count(("api", Reason.RATE_LIMITED, 429)) == 2


@pytest.mark.parametrize(
    "answer",
    [
        obliging("rate"),
        obliging("rate", per_second=0),
        obliging("rate", per_second=True),
        obliging("rate", per_second="5"),
        obliging("rate", per_second=5, burst=-1),
        obliging("notify", whom="security"),
    ],
)
async def test_an_obligation_that_cannot_be_met_denies(tmp_path: Path, answer: Answer) -> None:
    upstream = RawUpstream()
    async with gateway_to(upstream, tmp_path) as plane:
        plane.engine.answer = lambda query: answer
        assert (await (await plane.connect()).get()).reason == Reason.ENGINE_ANSWER_INVALID.code
    assert upstream.dials == 0
