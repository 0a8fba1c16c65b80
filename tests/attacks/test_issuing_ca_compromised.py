"""Class "issuing CA compromised" (DigiNotar, 2011): whoever has its key can sign any identity. Once it is withdrawn,
nothing that it signed is let in, whatever serial it bears; open streams and idle connections by it are cut, and what
another CA signed goes on. The authority signs no more with it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from foundation.faults import Fault
from foundation.identity import CA_COMPROMISE, Revocation
from foundation.reasons import Reason
from gateway.snapshot import SnapshotStore
from tests.attacks.test_open_stream_outlives_permission import assert_cut, watching
from tests.fakes.trust import spiffe
from tests.support.gateway import DataPlane, RawUpstream, gateway_to
from tests.support.site import ACTOR, TRUST_DOMAIN, open_site


def withdraw(plane: DataPlane, issuer: str) -> None:
    plane.store.apply(Revocation(1, spiffe("issuing-ca"), issuer, CA_COMPROMISE, 1.0))


def issuer_of(plane: DataPlane) -> str:
    (connection,) = plane.listener.connections
    assert connection.peer.issuer
    return connection.peer.issuer


@pytest.mark.parametrize("settled", [False, True])
async def test_open_streams_by_it_are_cut(tmp_path: Path, settled: bool) -> None:
    async with watching(tmp_path) as (plane, client, upstream):
        if settled:
            await plane.advance(1)
        withdraw(plane, issuer_of(plane))
        await assert_cut(plane, client, upstream)
        assert plane.metrics.answers[-1][1] is Reason.CUT_BY_REVOCATION


async def test_idle_connections_by_it_end_and_new_ones_are_refused(tmp_path: Path) -> None:
    async with gateway_to(RawUpstream(), tmp_path) as plane:
        client = await plane.connect()
        assert (await client.get()).status == 200
        withdraw(plane, issuer_of(plane))
        assert await client.ended() == b""
        assert (await (await plane.connect()).get()).reason == "identity_revoked"


async def test_what_another_ca_signed_goes_on(tmp_path: Path) -> None:
    async with watching(tmp_path) as (plane, _, upstream):
        issuer = issuer_of(plane)
        withdraw(plane, issuer[:-1] + ("0" if issuer[-1] != "0" else "1"))
        await plane.advance(1)
        assert plane.registry.open_count == 1
        assert not upstream.ended.is_set()


def test_a_gateway_that_restarts_still_knows() -> None:
    store, again = SnapshotStore(), SnapshotStore()
    store.apply(Revocation(1, spiffe("issuing-ca"), "ab" * 20, CA_COMPROMISE, 1.0))
    for change in store.present():
        again.apply(change)
    assert again.current.is_revoked(spiffe(), "1", "ab" * 20)
    assert not again.current.is_revoked(spiffe(), "ab" * 20, "cd" * 20)  # it is no certificate's serial


async def test_the_authority_tells_everybody_and_signs_no_more(tmp_path: Path) -> None:
    async with open_site(tmp_path) as site:
        node = await site.expect()
        await site.issue(node)
        key = site.authority.revocations._issuer.key_identifier.hex()
        with pytest.raises(Fault):
            await site.authority.revocations.withdraw_issuer("not hex", TRUST_DOMAIN, ACTOR)
        made = await site.authority.revocations.withdraw_issuer(key, TRUST_DOMAIN, ACTOR)
        assert await site.authority.revocations.withdraw_issuer(key, TRUST_DOMAIN, ACTOR) == made
        assert (made.issuer, made.number) == (key, 1)
        store = SnapshotStore()
        async with site.authority.feed.follow(None) as changes, asyncio.timeout(10):
            async for change in changes:
                store.apply(change)
                if store.heartbeat_at:
                    break
        assert store.current.is_revoked(node, "1", key)
        with pytest.raises(Fault) as refused:
            await site.issue(node)
        assert refused.value.reason is Reason.ISSUER_WITHDRAWN
        # A backup from before does not know it; the gateways do.
        assert await site.authority.revocations.merge((made,), ACTOR) == 0
        other = replace(made, serial="ab" * 20)
        assert await site.authority.revocations.merge((other,), ACTOR) == 1
        assert "ca.withdrawn" in site.audit.kinds()
        await site.authority.revocations.crl()  # which is of certificates alone
