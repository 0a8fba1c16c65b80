"""attacks.md, "one-time token raced" (SPIRE 1.14.6): one hundred parallel uses, in one process and over three that
share a database: one succeeds."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE, Process
from collections import Counter
from pathlib import Path

import pytest

from foundation.faults import Fault
from foundation.reasons import Reason
from foundation.wire.enrolment import Token
from pki.issue import IssueRequest
from pki.ledger import Step
from pki.profile import ProfileName
from pki.tokens import TokenUse
from tests.support.site import ACTOR, Site, attested, new_spki, open_site

pytestmark = pytest.mark.every_storage
USES = 100
PROCESSES = 3
ROOT = Path(__file__).parents[2]


async def _bound(site: Site) -> tuple[Token, TokenUse]:
    token = await site.authority.tokens.mint(site.node(), 600, ACTOR)
    use = await site.authority.tokens.check(token)
    return token, await site.authority.tokens.bind(use, attested(site.clock, site.node().name).ek_sha256)


async def _one_certificate(site: Site) -> None:
    rows = await site.authority.ledger.page(site.node())
    assert [row.step for row in rows] == [Step.ISSUED]


async def test_a_hundred_uses_in_one_process(tmp_path: Path, storage: str) -> None:
    async with open_site(tmp_path, storage) as site:
        _, use = await _bound(site)
        passed = attested(site.clock, use.identity.name)
        requests = [
            IssueRequest(use.identity, ProfileName.NODE, new_spki(), ACTOR, attested=passed, token=use)
            for _ in range(USES)
        ]
        outcomes = await asyncio.gather(*(site.authority.issue(one) for one in requests), return_exceptions=True)
        refused = [outcome for outcome in outcomes if isinstance(outcome, Fault)]
        assert len(refused) == USES - 1
        assert {fault.reason for fault in refused} == {Reason.TOKEN_USED}
        await _one_certificate(site)


async def test_a_hundred_uses_over_three_processes(tmp_path: Path, storage: str) -> None:
    async with open_site(tmp_path, storage) as site:
        token, _ = await _bound(site)
        racers = [await _racer(tmp_path, storage, token) for _ in range(PROCESSES)]
        for racer in racers:
            assert racer.stdout is not None
            assert await racer.stdout.readline() == b"ready\n"
        told = await asyncio.gather(*(racer.communicate(b"go\n") for racer in racers))
        outcomes = Counter(line for out, _ in told for line in out.decode().split())
        assert outcomes == {"issued": 1, "token_used": PROCESSES * (USES // PROCESSES) - 1}
        await _one_certificate(site)


async def test_a_hundred_first_uses_bind_one_tpm(tmp_path: Path, storage: str) -> None:
    async with open_site(tmp_path, storage) as site:
        token = await site.authority.tokens.mint(site.node(), 600, ACTOR)
        use = await site.authority.tokens.check(token)
        bindings = [bytes([i]) * 32 for i in range(USES)]
        binds = (site.authority.tokens.bind(use, binding) for binding in bindings)
        outcomes = await asyncio.gather(*binds, return_exceptions=True)
        refused = [outcome for outcome in outcomes if isinstance(outcome, Fault)]
        assert len(refused) == USES - 1
        assert {fault.reason for fault in refused} == {Reason.TOKEN_BOUND_ELSEWHERE}


async def _racer(folder: Path, storage: str, token: Token) -> Process:
    command = [sys.executable, "-m", "tests.support.issuing_process", "race", str(folder), storage, token.encode()]
    return await asyncio.create_subprocess_exec(*command, str(USES // PROCESSES), cwd=ROOT, stdin=PIPE, stdout=PIPE)
