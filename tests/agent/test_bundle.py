"""What a node decides by while it is cut off: which bundles it takes, keeps, forgets, and can open again."""

from __future__ import annotations

import asyncio
import itertools
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from agent.bundle import FLOOR, REVISION, STATE, Bundles, BundleSettings, Held
from agent.sealed_file import TpmLock
from agent.tpm import Tpm
from foundation.faults import Fault
from foundation.fields import Fields
from foundation.identifiers import SpiffeId
from foundation.reasons import Reason
from foundation.wire.bundle import BundleTerms
from policies.signing import public_pem
from tests.fakes.clock import ManualClock
from tests.support.bundles import GRANTS, KEY, OTHER_KEY, RECORD, FakeAuthority, Keeping
from tests.support.swtpm import EmulatedTpm, TpmMaker, booted, maker, swtpm

__all__ = ["maker", "swtpm"]  # fixtures

FEWER = GRANTS.replace("[/valve]", "[/valve/open]")


@pytest.fixture
def keeping(tmp_path: Path) -> Keeping:
    clock = ManualClock()
    return Keeping(tmp_path / "node", FakeAuthority(clock), clock)


async def test_it_takes_a_bundle_and_keeps_it(keeping: Keeping) -> None:
    bundles = keeping.start()
    heard: list[Held | None] = []
    bundles.listen(heard.append)
    await bundles.refresh()
    held = bundles.current
    assert held is not None
    assert (held.number, held.bundle.record) == (1, RECORD)
    assert held.compiled.data["workspace"]["routes"]["database"]["service"] == "postgres"
    assert heard == [None, held]
    again = keeping.start()
    await again.load()
    assert again.current == held
    assert keeping.authority.asked == [0]


async def test_a_newer_record_without_an_archive_is_kept_too(keeping: Keeping) -> None:
    bundles = keeping.start()
    await bundles.refresh()
    keeping.authority.record = replace(RECORD, segment="elsewhere")
    keeping.clock.advance(100)
    await bundles.refresh()
    assert keeping.authority.asked == [0, 1]
    again = keeping.start()
    await again.load()
    assert again.current is not None
    assert again.current.bundle.record.segment == "elsewhere"
    assert again.current.bundle.at == keeping.clock.now()


@pytest.mark.parametrize("number", [4, 3])
@pytest.mark.parametrize("restart", [False, True])
async def test_no_revision_below_the_floor(keeping: Keeping, number: int, restart: bool) -> None:
    keeping.authority.number = 5
    bundles = keeping.start()
    await bundles.refresh()
    if restart:
        (keeping.folder / STATE).unlink()  # the seal is lost, by an update of the firmware
        bundles = keeping.start()
        await bundles.load()
    keeping.authority.number = number
    await bundles.refresh()
    assert bundles.fault is not None
    assert bundles.fault.reason is Reason.REVISION_DOWNGRADE
    assert (bundles.current.number if bundles.current else 0) == (0 if restart else 5)


async def test_no_other_revision_of_the_same_number(keeping: Keeping) -> None:
    bundles = keeping.start()
    await bundles.refresh()
    keeping.authority.grants = FEWER
    (keeping.folder / STATE).unlink()
    again = keeping.start()
    await again.refresh()
    assert again.fault is not None
    assert again.fault.reason is Reason.REVISION_DOWNGRADE


async def test_a_floor_that_cannot_be_read_is_not_forgotten(keeping: Keeping) -> None:
    bundles = keeping.start()
    await bundles.refresh()
    (keeping.folder / FLOOR).write_text("{}")
    again = keeping.start()
    await again.load()
    await again.refresh()
    assert again.current is None
    assert again.fault is not None
    assert again.fault.reason is Reason.FILE_UNREADABLE


async def test_a_bundle_of_another_node_is_refused(keeping: Keeping) -> None:
    keeping.authority.record = replace(RECORD, id=SpiffeId.parse("spiffe://fleet.example/node/edge-2"))
    bundles = keeping.start()
    await bundles.refresh()
    assert bundles.current is None
    assert bundles.fault is not None
    assert bundles.fault.reason is Reason.SERVER_UNTRUSTED


async def test_an_archive_signed_by_another_key_than_stated_is_refused(
    keeping: Keeping, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch = keeping.authority.fetch
    keeping.authority.key = OTHER_KEY
    monkeypatch.setattr(keeping.authority, "fetch", lambda have: replace(fetch(have), policy_key=public_pem(KEY)))
    bundles = keeping.start()
    await bundles.refresh()
    assert bundles.fault is not None
    assert bundles.fault.reason is Reason.REVISION_SIGNATURE


async def test_the_authority_vouches_for_another_key_and_it_is_told(keeping: Keeping) -> None:
    bundles = keeping.start()
    await bundles.refresh()
    keeping.authority.key = OTHER_KEY
    await bundles.refresh()
    assert bundles.current is not None
    assert bundles.current.bundle.policy_key == public_pem(OTHER_KEY)
    assert keeping.authority.asked == [0, 1, 0]  # all of it is verified by the new key
    assert "policy_key.changed" in keeping.kinds


async def test_a_key_in_the_settings_is_believed_alone(keeping: Keeping, tmp_path: Path) -> None:
    pinned = tmp_path / "policy.pub"
    pinned.write_bytes(public_pem(OTHER_KEY))
    bundles = keeping.start(BundleSettings(policy_key=pinned))
    await bundles.refresh()
    assert bundles.current is None
    assert bundles.fault is not None
    assert bundles.fault.reason is Reason.REVISION_SIGNATURE
    pinned.write_bytes(public_pem(KEY))
    await bundles.refresh()
    assert bundles.current is not None


@pytest.mark.parametrize(
    "reason",
    [Reason.IDENTITY_REVOKED, Reason.IDENTITY_QUARANTINED, Reason.IDENTITY_UNKNOWN, Reason.POSTURE_FAILED],
)
async def test_what_the_authority_says_of_this_node_ends_it(keeping: Keeping, reason: Reason) -> None:
    bundles = keeping.start()
    heard: list[Held | None] = []
    await bundles.refresh()
    bundles.listen(heard.append)
    keeping.authority.fault = reason
    await bundles.refresh()
    assert bundles.current is None
    assert heard[-1] is None
    again = keeping.start()
    await again.load()
    assert again.current is None


async def test_an_authority_that_is_away_ends_nothing(keeping: Keeping) -> None:
    bundles = keeping.start()
    await bundles.refresh()
    keeping.authority.fault = Reason.SERVER_UNREACHABLE
    await bundles.refresh()
    assert bundles.current is not None
    assert keeping.kinds == ["bundle.accepted"]


async def test_trust_time_does_not_go_back_over_a_start(keeping: Keeping) -> None:
    await keeping.start().refresh()
    at = keeping.clock.now()
    keeping.clock.set_wall(at - 86_400)
    again = keeping.start()
    await again.load()
    assert again._time.now() >= at


async def test_a_disk_that_is_full_loses_no_decision(keeping: Keeping, monkeypatch: pytest.MonkeyPatch) -> None:
    bundles = keeping.start()

    def full(name: str, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bundles._vault, "write", full)
    await bundles.refresh()
    assert bundles.current is not None


@asynccontextmanager
async def running(keeping: Keeping) -> AsyncIterator[tuple[Bundles, Callable[[int], Awaitable[None]]]]:
    """Bundles that run, and a wait for so many requests, while time passes by the second."""
    bundles = keeping.start()
    task = asyncio.create_task(bundles.run())

    async def asked(count: int) -> None:
        while len(keeping.authority.asked) < count:
            keeping.clock.advance(1.0)
            await asyncio.sleep(0.001)

    try:
        yield bundles, asked
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_it_asks_at_the_pace_that_the_authority_sets(keeping: Keeping) -> None:
    async with running(keeping) as (_, asked):
        await asked(1)
        at = keeping.clock.monotonic()
        await asked(2)
        assert keeping.clock.monotonic() - at >= BundleTerms().refresh


async def test_it_asks_when_it_is_told_of_a_newer_one(keeping: Keeping) -> None:
    keeping.authority.terms = BundleTerms(604_800, 604_800, 604_800)  # by itself, only after a week
    async with running(keeping) as (bundles, asked):
        await asked(1)
        bundles.ask()
        await asked(2)


async def test_it_asks_again_ever_more_slowly_while_nobody_answers(keeping: Keeping) -> None:
    keeping.authority.fault = Reason.SERVER_UNREACHABLE
    async with running(keeping) as (_, asked):
        times = []
        for count in range(1, 5):
            await asked(count)
            times.append(keeping.clock.monotonic())
    pauses = [later - sooner for sooner, later in itertools.pairwise(times)]
    assert all(pause >= 5 * 2**i for i, pause in enumerate(pauses))


# --- on disk, with a TPM ----------------------------------------------------------------------------------


async def kept_by(keeping: Keeping, device: EmulatedTpm) -> None:
    with Tpm(device.tcti) as tpm:
        keeping.lock = TpmLock(tpm, BundleSettings().selection)
        bundles = keeping.start()
        await bundles.refresh()
        assert bundles.current is not None


async def opened_by(keeping: Keeping, device: EmulatedTpm) -> Held | None:
    with Tpm(device.tcti) as tpm:
        keeping.lock = TpmLock(tpm, BundleSettings().selection)
        bundles = keeping.start()
        await bundles.load()
        return bundles.current


async def test_it_is_opened_after_a_reboot(keeping: Keeping, swtpm: EmulatedTpm) -> None:
    await kept_by(keeping, swtpm)
    swtpm.shut_down()
    swtpm.boot()
    held = await opened_by(keeping, swtpm)
    assert held is not None
    assert held.number == 1


async def test_a_copied_disk_holds_nothing_that_can_be_read(
    keeping: Keeping, swtpm: EmulatedTpm, maker: TpmMaker, tmp_path: Path
) -> None:
    await kept_by(keeping, swtpm)
    stolen = replace(keeping, folder=tmp_path / "stolen", noted=[])
    shutil.copytree(keeping.folder, stolen.folder)
    for path in stolen.folder.iterdir():
        assert b"postgres" not in path.read_bytes()
        assert b"edge-1" not in path.read_bytes()
    with booted(tmp_path / "other", maker) as other:
        assert await opened_by(stolen, other) is None
    assert stolen.noted == [("bundle.refused", {"reason": "bundle_sealed", "kept": True})]


async def test_another_boot_state_does_not_open_it_and_a_new_one_is_sealed_anew(
    keeping: Keeping, swtpm: EmulatedTpm
) -> None:
    await kept_by(keeping, swtpm)
    swtpm.shut_down()
    swtpm.boot(())  # nothing is measured: another firmware
    assert await opened_by(keeping, swtpm) is None
    await kept_by(keeping, swtpm)
    assert await opened_by(keeping, swtpm) is not None


@pytest.mark.parametrize("name", [STATE, REVISION])
async def test_a_changed_file_is_refused(keeping: Keeping, name: str) -> None:
    await keeping.start().refresh()
    path = keeping.folder / name
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(bytes(raw))
    again = keeping.start()
    await again.load()
    assert again.current is None
    assert ("bundle.refused", {"reason": "bundle_sealed", "kept": True}) in keeping.noted


async def test_the_head_is_authenticated_too(keeping: Keeping) -> None:
    await keeping.start().refresh()
    path = keeping.folder / STATE
    path.write_bytes(path.read_bytes().replace(b'"lock":"software"', b'"lock": "software"'))
    again = keeping.start()
    await again.load()
    assert again.current is None


@pytest.mark.parametrize("section", [{"pcrs": []}, {"pcrs": [24]}, {"bank": "sha1"}, {"more": 1}])
def test_settings_that_are_none(section: dict[str, object]) -> None:
    with pytest.raises(Fault):
        BundleSettings.parse(Fields(section, "agent.bundle", Reason.SETTING_INVALID))


def test_settings() -> None:
    parsed = BundleSettings.parse(Fields({"pcrs": [7, 0, 7]}, "agent.bundle", Reason.SETTING_INVALID))
    assert parsed.pcrs == (0, 7)
