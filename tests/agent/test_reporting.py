"""A node's report over its own certificate to the real authority, and the skew that it learns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from agent.authority import AuthorityApi
from agent.enrol import enrol
from agent.health import HealthSettings, Sources, take, with_parts
from agent.keys import client_context, stored_key
from agent.reporting import AuthorityReports
from agent.settings import Address, AgentSettings
from agent.store import NodeStore
from foundation.faults import Fault
from foundation.reasons import Reason
from foundation.wire.health import Standing
from tests.fakes.clock import ManualClock
from tests.support.agent import EagerClock, quiet
from tests.support.installation import installation


async def test_a_report_arrives_and_the_skew_is_learnt(tmp_path: Path) -> None:
    async with installation(tmp_path / "site", without_tpm=("node/edge-1",)) as site:
        settings = AgentSettings(directory=tmp_path / "node", attestation="none", timeout=10)
        store = NodeStore(settings.directory)
        async with site.enrolling() as address:
            settings = replace(settings, authority=address)
            identity = await enrol(settings, await site.token(), store, EagerClock(), quiet)
        key = stored_key(identity.key, None)
        async with site.serving() as api:
            ahead = ManualClock(site.clock.now() + 7.5)
            reports = AuthorityReports(AuthorityApi(api, lambda: client_context(identity, key), 10).report, ahead)
            assert reports.clock_skew() is None
            report = with_parts(take(HealthSettings(), ahead.now()), Sources(clock_skew=lambda: 1.0))
            await reports.deliver(report.encode())
            assert reports.clock_skew() == pytest.approx(7.5)
            with pytest.raises(Fault) as caught:
                await reports.deliver(b'{"roles": ["security"]}')
            assert caught.value.reason is Reason.MESSAGE_MALFORMED
        found = await site.authority.node_health.of(site.id("edge-1"))
    assert found.report == report
    assert found.standing is not Standing.UNKNOWN


async def test_an_authority_that_is_away_is_told_and_the_skew_stays(tmp_path: Path) -> None:
    def no_context() -> object:
        raise Fault(Reason.TPM_UNAVAILABLE)

    away = AuthorityReports(AuthorityApi(Address("127.0.0.1", 1), no_context, 1).report, ManualClock())  # type: ignore[arg-type]
    with pytest.raises(Fault):
        await away.deliver(b"{}")
    assert away.clock_skew() is None
