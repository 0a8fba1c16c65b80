"""Row "stolen node" (kubeedge#4730, #6227): the tunnel of a revoked node is cut, and it gets no other, by the same
certificate or by one that it holds besides; nor does one in quarantine, or one that nobody knows."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from foundation.identity import IdentityChanged, Revocation, State
from tests.fakes.trust import record, spiffe
from tests.support.brokered import BrokeredPlane, settled


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[BrokeredPlane]:
    async with BrokeredPlane(tmp_path).running() as plane:
        yield plane


async def test_its_tunnel_is_cut_and_it_gets_no_other(plane: BrokeredPlane) -> None:
    stolen, other = await plane.node("stolen"), await plane.node("other")
    use = await stolen.reach("other")
    plane.store.apply(Revocation(1, spiffe("stolen"), "", "key_compromise", plane.clock.now()))
    await settled(lambda: stolen.is_lost and use.cut is not None)
    again = await plane.dial("stolen")
    await settled(lambda: again.is_lost)
    assert plane.broker.holder(spiffe("stolen")) is None
    assert not other.is_lost


@pytest.mark.parametrize("state", [State.QUARANTINED, State.REVOKED, State.EXPECTED])
async def test_who_is_not_active_gets_no_tunnel(plane: BrokeredPlane, state: State) -> None:
    plane.store.apply(IdentityChanged(1, record("x", state=state)))
    node = await plane.dial("x")
    await settled(lambda: node.is_lost)
    assert plane.broker.holder(spiffe("x")) is None


async def test_who_is_not_known_gets_no_tunnel(plane: BrokeredPlane) -> None:
    node = await plane.dial("stranger")
    await settled(lambda: node.is_lost)
