"""Attack class "replay, constant nonce" (CVE-2026-6420): evidence of another session, a message sent twice, challenges
that are equal."""

from __future__ import annotations

from pathlib import Path

import pytest

from foundation.faults import Fault
from foundation.reasons import Reason
from foundation.wire.enrolment import Challenge, Evidence, Token
from tests.support.installation import Installation, installation
from tests.support.node import HERE, Node, node_id, tpm_node
from tests.support.swtpm import EmulatedTpm, TpmMaker, maker, swtpm

__all__ = ["maker", "swtpm"]


async def _evidence_of_another_session(site: Installation, node: Node, token: Token) -> Evidence:
    kept: list[Evidence] = []

    def keep(evidence: Evidence) -> Evidence:
        kept.append(evidence)
        return evidence

    first = node.begin(token)
    node.complete(first, await site.service.enrolment.begin(first, HERE), keep)
    return kept[0]


@pytest.mark.parametrize("part", ["quote", "certify"])
async def test_old_evidence_is_refused(tmp_path: Path, swtpm: EmulatedTpm, maker: TpmMaker, part: str) -> None:
    async with installation(tmp_path / "site", virtual=(maker.root,)) as site:
        token = await site.token()
        with tpm_node(swtpm) as node:
            old = await _evidence_of_another_session(site, node, token)

            def replayed(fresh: Evidence) -> Evidence:
                names = (f"{part}_attest", f"{part}_signature")
                return Evidence(**{name: getattr(old if name in names else fresh, name) for name in Evidence.__slots__})

            with pytest.raises(Fault) as caught:
                await node.enrol(site, token, replayed)
        assert caught.value.reason is Reason.ATTEST_NONCE
        assert await site.authority.ledger.page(node_id()) == ()


async def test_no_two_challenges_are_equal(tmp_path: Path, swtpm: EmulatedTpm, maker: TpmMaker) -> None:
    async with installation(tmp_path / "site", virtual=(maker.root,)) as site:
        with tpm_node(swtpm) as node:
            first = node.begin(await site.token())
        made = [Challenge.parse(await site.service.enrolment.begin(first, HERE)) for _ in range(8)]
    for name in ("session", "nonce", "credential_blob", "encrypted_secret"):
        assert len({getattr(each, name) for each in made}) == len(made), name


async def test_the_same_message_issues_nothing_new(tmp_path: Path, swtpm: EmulatedTpm, maker: TpmMaker) -> None:
    async with installation(tmp_path / "site", virtual=(maker.root,)) as site:
        with tpm_node(swtpm) as node:
            first = node.begin(await site.token())
            second = node.complete(first, await site.service.enrolment.begin(first, HERE))
        answers = {await site.service.enrolment.complete(second, HERE) for _ in range(3)}
        assert len(answers) == 1
        assert len(await site.authority.ledger.page(node_id())) == 1


async def test_a_session_serves_once_and_sixty_seconds(tmp_path: Path, swtpm: EmulatedTpm, maker: TpmMaker) -> None:
    async with installation(tmp_path / "site", virtual=(maker.root,)) as site:
        token = await site.token()
        with tpm_node(swtpm) as node:
            first = node.begin(token)
            challenge = await site.service.enrolment.begin(first, HERE)
            second = node.complete(first, challenge)
            site.clock.advance(60.1)
            with pytest.raises(Fault) as late:
                await site.service.enrolment.complete(second, HERE)
        assert late.value.reason is Reason.SESSION_UNKNOWN
        assert await site.authority.ledger.page(node_id()) == ()
