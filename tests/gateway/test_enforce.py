"""A revision is verified, loaded, and only then the floor that the next one must pass."""

from __future__ import annotations

from pathlib import Path

import pytest

import gateway.enforce
from foundation.faults import Fault
from foundation.identity import PolicyPublished
from foundation.reasons import Reason
from gateway.enforce import Enforcer, Floor, read_floor, try_out
from policies.lifecycle.revision import build
from policies.settings import CompileSettings, PolicySettings
from policies.signing import SigningKey
from tests.support.policy import workspace
from tests.support.signing import new_signing_key

KEY = new_signing_key()
SETTINGS = PolicySettings()


def bundle(number: int, key: SigningKey = KEY) -> bytes:
    return build(workspace(), number, 1_800_000_000, CompileSettings()).signed(key)


async def test_an_enforced_revision_raises_the_floor(tmp_path: Path) -> None:
    floor = tmp_path / "floor"
    enforce = Enforcer(SETTINGS, KEY.public_key(), floor)
    part = await enforce(PolicyPublished(2, bundle(2)))
    await part.engine.close()
    assert read_floor(floor) == Floor(2, part.digest)
    with pytest.raises(Fault) as refused:
        await enforce(PolicyPublished(1, bundle(1)))
    assert refused.value.reason is Reason.REVISION_DOWNGRADE


async def test_one_that_does_not_load_raises_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object, **__: object) -> None:
        raise Fault(Reason.ENGINE_FAILED)

    floor = tmp_path / "floor"
    enforce = Enforcer(SETTINGS, KEY.public_key(), floor)
    with monkeypatch.context() as patched:
        patched.setattr(gateway.enforce, "load_engine", broken)
        with pytest.raises(Fault):
            await enforce(PolicyPublished(3, bundle(3)))
    assert read_floor(floor) == Floor(0, "")
    part = await enforce(PolicyPublished(2, bundle(2)))
    await part.engine.close()


async def test_a_damaged_floor_is_not_forgotten(tmp_path: Path) -> None:
    floor = tmp_path / "floor"
    floor.write_bytes(b"{")
    with pytest.raises(Fault) as refused:
        await Enforcer(SETTINGS, KEY.public_key(), floor)(PolicyPublished(1, bundle(1)))
    assert refused.value.reason is Reason.FILE_UNREADABLE


async def test_publishing_tries_out_what_gateways_would_do(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object, **__: object) -> None:
        raise Fault(Reason.ENGINE_FAILED)

    assert await try_out(bundle(7), KEY.public_key(), SETTINGS) == 7
    with pytest.raises(Fault) as refused:
        await try_out(bundle(7, new_signing_key()), KEY.public_key(), SETTINGS)
    assert refused.value.reason is Reason.REVISION_SIGNATURE
    monkeypatch.setattr(gateway.enforce, "load_engine", broken)
    with pytest.raises(Fault) as refused:
        await try_out(bundle(7), KEY.public_key(), SETTINGS)
    assert refused.value.reason is Reason.ENGINE_FAILED
