"""Tokens: what is kept of them, who may use one, and how often."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from foundation.faults import Fault
from foundation.identity import State
from foundation.reasons import Reason
from foundation.wire.enrolment import Token
from pki.ledger import RESERVATION_SECONDS, Step
from pki.revocation_reason import RevocationReason
from pki.signer import FileSigner
from pki.tables import tokens
from pki.tokens import TokenUse
from tests.support.site import ACTOR, Site, attested

pytestmark = pytest.mark.every_storage


async def bound(site: Site, name: str = "node-1", ttl: float = 600) -> tuple[Token, TokenUse]:
    token = await site.authority.tokens.mint(site.node(name), ttl, ACTOR)
    use = await site.authority.tokens.check(token)
    return token, await site.authority.tokens.bind(use, attested(site.clock, name).ek_sha256)


async def reason_of(site: Site, token: Token) -> Reason:
    with pytest.raises(Fault) as caught:
        await site.authority.tokens.check(token)
    return caught.value.reason


async def test_minting_expects_the_node_and_keeps_no_secret(site: Site) -> None:
    token = await site.authority.tokens.mint(site.node(), 600, ACTOR)
    assert token.root_sha256 == site.authority.root_sha256
    assert (await site.authority.inventory.get(site.node())).record.state is State.EXPECTED
    async with site.database.reading() as connection:
        row = (await connection.execute(select(tokens))).one()
    assert token.secret not in row
    assert token.secret.hex() not in repr(site.audit.events)
    (told,) = await site.authority.tokens.page()
    assert (told.token_id, told.state) == (token.token_id, "open")


async def test_only_the_whole_token_is_one(site: Site) -> None:
    token = await site.authority.tokens.mint(site.node(), 600, ACTOR)
    for wrong in (
        Token(token.root_sha256, token.token_id, b"x" * 32),
        Token(token.root_sha256, b"x" * 16, token.secret),
        Token(b"x" * 32, token.token_id, token.secret),
    ):
        assert await reason_of(site, wrong) is Reason.TOKEN_UNKNOWN


async def test_a_token_ends(site: Site) -> None:
    token, use = await bound(site)
    site.clock.advance(601)
    assert await reason_of(site, token) is Reason.TOKEN_EXPIRED
    with pytest.raises(Fault) as caught:
        await site.issue(site.node(), token=use)
    assert caught.value.reason is Reason.TOKEN_EXPIRED


async def test_a_token_serves_the_tpm_it_is_bound_to(site: Site) -> None:
    token, use = await bound(site)
    assert (await site.authority.tokens.bind(use, use.binding)).binding == use.binding
    for binding in (b"other" * 6 + b"..", b""):
        with pytest.raises(Fault) as caught:
            await site.issue(site.node(), token=TokenUse(use.token_id, use.identity, use.expires_at, binding))
        assert caught.value.reason is Reason.TOKEN_BOUND_ELSEWHERE
    with pytest.raises(Fault) as caught:
        await site.authority.tokens.bind(use, b"other" * 6 + b"..")
    assert caught.value.reason is Reason.TOKEN_BOUND_ELSEWHERE
    assert (await site.authority.tokens.check(token)).binding == use.binding


async def test_a_token_serves_the_identity_it_was_minted_for(site: Site) -> None:
    _, use = await bound(site)
    other = await site.expect("other")
    with pytest.raises(Fault) as caught:
        await site.issue(other, token=TokenUse(use.token_id, other, use.expires_at, use.binding))
    assert caught.value.reason is Reason.TOKEN_UNKNOWN


async def test_a_token_is_spent_once(site: Site) -> None:
    token, use = await bound(site)
    await site.issue(site.node(), token=use)
    assert await reason_of(site, token) is Reason.TOKEN_USED
    with pytest.raises(Fault) as caught:
        await site.issue(site.node(), token=use)
    assert caught.value.reason is Reason.TOKEN_USED
    assert len(await site.authority.ledger.page(site.node())) == 1


async def test_a_failed_issue_gives_the_token_back(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    _, use = await bound(site)

    async def broken(self: FileSigner, message: bytes) -> bytes:
        raise Fault(Reason.SIGNER_FAILED)

    with monkeypatch.context() as patch:
        patch.setattr(FileSigner, "sign", broken)
        with pytest.raises(Fault):
            await site.issue(site.node(), token=use)
    await site.issue(site.node(), token=use)


async def test_a_process_that_died_gives_the_token_back_in_time(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    token, use = await bound(site)

    class Killed(BaseException):
        pass

    async def die(self: FileSigner, message: bytes) -> bytes:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(FileSigner, "sign", die)
        with pytest.raises(Killed):
            await site.issue(site.node(), token=use)
    assert await reason_of(site, token) is Reason.TOKEN_USED
    site.clock.advance(RESERVATION_SECONDS + 1)
    issued = await site.issue(site.node(), token=use)
    steps = {row.serial: row.step for row in await site.authority.ledger.page(site.node())}
    assert steps.pop(issued.serial) is Step.ISSUED
    assert list(steps.values()) == [Step.ABANDONED]


async def test_who_is_shut_out_gets_no_token_and_loses_those_that_are_open(site: Site) -> None:
    token, _ = await bound(site)
    await site.authority.revocations.revoke_identity(site.node(), RevocationReason.UNSPECIFIED, ACTOR)
    assert await reason_of(site, token) is Reason.TOKEN_USED
    with pytest.raises(Fault) as caught:
        await site.authority.tokens.mint(site.node(), 600, ACTOR)
    assert caught.value.reason is Reason.INVENTORY_STATE


async def test_voiding_leaves_spent_ones_alone(site: Site) -> None:
    _, use = await bound(site)
    await site.issue(site.node(), token=use)
    open_one = await site.authority.tokens.mint(site.node(), 600, ACTOR)
    assert await site.authority.tokens.void(site.node(), ACTOR) == 1
    assert await reason_of(site, open_one) is Reason.TOKEN_USED
    assert {told.state for told in await site.authority.tokens.page()} == {"spent", "voided"}


@pytest.mark.parametrize("ttl", [0, -1, 31 * 86400])
async def test_lives_of_tokens_are_bounded(site: Site, ttl: float) -> None:
    with pytest.raises(Fault) as caught:
        await site.authority.tokens.mint(site.node(), ttl, ACTOR)
    assert caught.value.field == "ttl"
