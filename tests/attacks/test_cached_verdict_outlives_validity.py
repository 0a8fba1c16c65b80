"""Row "cached verdict outlives validity": on one open connection, with policy's answer cached, a request after the
end of certificate, attestation or grant is denied."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from foundation.identity import PostureChanged
from foundation.reasons import Reason
from tests.fakes.trust import ALLOW, HARDWARE, spiffe
from tests.support.gateway import RawUpstream, gateway_to

HOUR, DAY = 3600.0, 86_400.0


@pytest.mark.parametrize(
    ("ends", "after", "reason"),
    [
        ("certificate", DAY, Reason.CERTIFICATE_EXPIRED),
        ("attestation", HOUR, Reason.ATTESTATION_EXPIRED),
        ("grant", HOUR, Reason.GRANT_EXPIRED),
    ],
)
async def test_the_same_request_on_the_same_connection(tmp_path: Path, ends: str, after: float, reason: Reason) -> None:
    upstream = RawUpstream()
    async with gateway_to(upstream, tmp_path) as plane:
        now = plane.clock.now()
        plane.engine.cached = True
        if ends == "attestation":
            plane.store.apply(PostureChanged(1, spiffe(), HARDWARE, now + HOUR))
        if ends == "grant":
            plane.engine.answer = lambda query: replace(ALLOW, deadline=now + HOUR)
        client = await plane.connect()
        assert (await client.get()).status == 200
        plane.clock.set_wall(now + after - 60)
        assert (await client.get()).status == 200
        plane.clock.set_wall(now + after + 1)
        answered = await client.get()
        assert (answered.status, answered.reason) == (403, reason.code)
    assert len(upstream.seen) == 2


async def test_a_certificate_that_is_not_valid_yet_is_denied_too(tmp_path: Path) -> None:
    async with gateway_to(RawUpstream(), tmp_path) as plane:
        client = await plane.connect()
        plane.clock.set_wall(plane.clock.now() - 20 * DAY)
        assert (await client.get()).reason == Reason.CERTIFICATE_NOT_YET_VALID.code
