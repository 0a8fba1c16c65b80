"""Attack: an older, validly signed policy revision is offered again, to bring back what it allowed.

Row "bundle downgrade" of the attack table. The attacker holds every archive ever published and can alter bytes, but
does not hold the signing key.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest

from agent.bundle import REVISION, STATE
from foundation.faults import Fault
from foundation.identity import PolicyPublished
from foundation.reasons import Reason
from gateway.enforce import Enforcer
from policies.archive import pack, unpack
from policies.lifecycle.revision import build, verify
from policies.settings import CompileSettings, PolicySettings
from policies.signed import MANIFEST
from tests.fakes.clock import ManualClock
from tests.support.bundles import GRANTS, FakeAuthority, Keeping
from tests.support.policy import MINIMAL, workspace
from tests.support.signing import new_signing_key

KEY = new_signing_key()
PUBLIC = KEY.public_key()


@cache
def published(number: int, routes: str = MINIMAL["routes.yaml"].decode()) -> bytes:
    """What the holder of the key once published under this number."""
    return build(workspace(routes=routes), number, 1_800_000_000, CompileSettings()).signed(KEY)


@cache
def other(number: int) -> bytes:
    """Another revision of the same number."""
    return published(number, MINIMAL["routes.yaml"].decode().replace("[node, operator]", "[node]"))


@pytest.mark.parametrize("floor", [4, 5, 1000])
def test_an_older_or_equal_number_is_refused(floor: int) -> None:
    with pytest.raises(Fault) as caught:
        verify(published(4), PUBLIC, floor)
    assert caught.value.reason is Reason.REVISION_DOWNGRADE


def test_an_old_revision_under_a_new_number_is_refused() -> None:
    members = unpack(published(4))
    members[MANIFEST] = json.dumps({**json.loads(members[MANIFEST]), "number": 6}, sort_keys=True).encode()
    with pytest.raises(Fault) as caught:
        verify(pack(members), PUBLIC, 5)
    assert caught.value.reason is Reason.REVISION_SIGNATURE


@pytest.mark.parametrize("member", ["data.json", "policy.wasm", "routes.json", "reads.json", "rego/decision.rego"])
def test_an_old_member_under_the_new_manifest_is_refused(member: str) -> None:
    old = {**unpack(other(4)), "policy.wasm": b"\0asm", "routes.json": b'{"routes":[]}', "reads.json": b"[]"}
    old["rego/decision.rego"] = b"package sallyport"
    members = {**unpack(published(6)), member: old[member]}
    with pytest.raises(Fault) as caught:
        verify(pack(members), PUBLIC, 5)
    assert (caught.value.reason, caught.value.field) == (Reason.REVISION_MALFORMED, member)


async def test_a_gateway_refuses_it_after_a_restart_too(tmp_path: Path) -> None:
    floor, settings = tmp_path / "floor.json", PolicySettings()
    part = await Enforcer(settings, PUBLIC, floor)(PolicyPublished(5, published(5)))
    await part.engine.close()
    restarted = Enforcer(settings, PUBLIC, floor)
    for number, archive in ((4, published(4)), (6, published(4)), (5, other(5))):
        with pytest.raises(Fault) as caught:
            await restarted(PolicyPublished(number, archive))
        assert caught.value.reason is Reason.REVISION_DOWNGRADE
    again = await restarted(PolicyPublished(5, published(5)))
    assert again.revision == 5
    await again.engine.close()


async def test_a_node_refuses_it_after_a_restart_too(tmp_path: Path) -> None:
    """The node keeps a floor of its own: an authority that was restored, or is not ours any more, brings nothing back,
    and the files of an older bundle, put back beside the floor, neither."""
    clock = ManualClock()
    node = Keeping(tmp_path / "node", FakeAuthority(clock, number=5), clock)
    await node.start().refresh()
    older = {name: (node.folder / name).read_bytes() for name in (STATE, REVISION)}
    node.authority.number = 6
    await node.start().refresh()
    for name, content in older.items():
        (node.folder / name).write_bytes(content)
    restarted = node.start()
    await restarted.load()
    assert restarted.current is None
    for number, grants in ((5, GRANTS), (6, GRANTS.replace("[/valve]", "[/**]"))):
        node.authority.number, node.authority.grants = number, grants
        await restarted.refresh()
        assert restarted.current is None
        assert restarted.fault is not None
        assert restarted.fault.reason is Reason.REVISION_DOWNGRADE
