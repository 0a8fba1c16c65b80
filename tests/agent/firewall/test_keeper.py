"""Where the firewall's walls come from, what is said of it, and what happens where it cannot be set."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from agent.firewall.keeper import KEPT, RESOLVE_SECONDS, Firewall, Hosts, keep, kept, resolved
from agent.firewall.nft import MAX_OUTPUT, Nft
from agent.firewall.ruleset import removal
from agent.firewall.settings import FirewallSettings
from agent.firewall.wall import Network, Wall, parsed
from foundation.faults import Fault
from foundation.fields import Fields
from foundation.reasons import Reason
from foundation.wire.health import Firewall as Standing
from tests.fakes.clock import ManualClock
from tests.support.processes import ROOT

NODES = parsed(["10.77.0.0/16"])


def tool(folder: Path, body: str) -> Path:
    """A program in the place of nft."""
    path = folder / "nft"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


# --- settings -------------------------------------------------------------------------------------------------------
def settings_of(**given: object) -> FirewallSettings:
    return FirewallSettings.parse(
        Fields(given, "agent.firewall", Reason.SETTING_INVALID, unknown=Reason.SETTING_UNKNOWN)
    )


def test_settings_have_defaults() -> None:
    assert settings_of() == FirewallSettings()
    found = settings_of(interval="30s", allow=["10.77.0.53"], networks=["10.78.0.0/16"], enabled=False)
    assert (found.interval, found.enabled) == (30.0, False)
    assert (found.allow, found.networks) == (parsed(["10.77.0.53"]), parsed(["10.78.0.0/16"]))


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"interval": "10ms"}, "interval"),
        ({"interval": "2h"}, "interval"),
        ({"allow": ["name.example"]}, "allow"),
        ({"networks": ["10.78.0.1/16"]}, "networks"),
        ({"networks": ["0.0.0.0/0"]}, "networks"),
        ({"nodes": []}, ""),
    ],
)
def test_wrong_settings_are_named(given: dict[str, object], field: str) -> None:
    with pytest.raises(Fault) as caught:
        settings_of(**given)
    assert caught.value.field == f"agent.firewall.{field}".rstrip(".")


# --- hosts ----------------------------------------------------------------------------------------------------------
class Names:
    """A resolver whose answers tests set."""

    def __init__(self, **answers: list[str]) -> None:
        self.answers, self.asked = answers, 0

    async def __call__(self, host: str) -> tuple[Network, ...]:
        self.asked += 1
        if host not in self.answers:
            raise OSError("no such host")
        return parsed(self.answers[host])


async def test_addresses_are_taken_as_they_stand() -> None:
    names = Names()
    found = await Hosts(["10.0.0.1", "fd00::1", "10.0.0.1"], ManualClock(), names).addresses(())
    assert (found, names.asked) == (parsed(["10.0.0.1", "fd00::1"]), 0)


async def test_names_are_asked_now_and_then() -> None:
    names, clock = Names(gw=["10.0.0.1"]), ManualClock()
    hosts = Hosts(["gw"], clock, names)
    assert await hosts.addresses(()) == await hosts.addresses(()) == parsed(["10.0.0.1"])
    assert names.asked == 1
    names.answers["gw"] = ["10.0.0.2"]
    clock.advance(RESOLVE_SECONDS)
    assert await hosts.addresses(()) == parsed(["10.0.0.2"])


async def test_a_name_that_does_not_resolve_is_where_it_was() -> None:
    names, clock = Names(gw=["10.0.0.1"]), ManualClock()
    hosts = Hosts(["gw", "other"], clock, names)
    assert await hosts.addresses(parsed(["10.0.0.9"])) == parsed(["10.0.0.1", "10.0.0.9"])
    names.answers = {"other": ["10.0.0.3"]}
    clock.advance(RESOLVE_SECONDS)
    assert await hosts.addresses(parsed(["10.0.0.9"])) == parsed(["10.0.0.1", "10.0.0.3"])


async def test_the_system_resolves() -> None:
    assert set(await resolved("localhost")) & set(parsed(["127.0.0.1", "::1"]))


# --- what is kept ---------------------------------------------------------------------------------------------------
def test_what_should_be_is_kept_for_this_user_alone(tmp_path: Path) -> None:
    wall = Wall(NODES, parsed(["10.0.0.1"]), parsed(["10.0.0.2"]))
    assert kept(tmp_path / "new") is None
    keep(tmp_path / "new", wall)
    assert kept(tmp_path / "new") == wall
    assert stat.S_IMODE((tmp_path / "new" / KEPT).stat().st_mode) == 0o600


@pytest.mark.parametrize("raw", [b"", b"[]", b'{"nodes": ["0.0.0.0/0"], "reach": [], "allow": []}', b'{"nodes": []}'])
def test_a_broken_file_is_told(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / KEPT).write_bytes(raw)
    with pytest.raises(Fault):
        kept(tmp_path)


# --- the tool -------------------------------------------------------------------------------------------------------
async def test_without_the_tool_the_remedy_is_named(tmp_path: Path) -> None:
    with pytest.raises(Fault) as caught:
        await Nft(tmp_path / "nft").execute(removal())
    assert caught.value.reason is Reason.FIREWALL_UNAVAILABLE
    assert "nftables" in caught.value.reason.remedy


def test_without_root_the_remedy_is_named() -> None:
    code = (
        "import asyncio, os\n"
        "from agent.firewall.nft import Nft\nfrom agent.firewall.ruleset import removal\n"
        "from foundation.faults import Fault\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "try:\n    asyncio.run(Nft().execute(removal()))\n"
        "except Fault as fault:\n    print(fault.reason.code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), os.geteuid()) == ("firewall_unavailable", 0), done.stderr


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("echo 'Error: Could not process rule: No space left' >&2; exit 1", Reason.FIREWALL_REFUSED),
        ("echo 'Operation not permitted (you must be root)' >&2; exit 1", Reason.FIREWALL_UNAVAILABLE),
        ("kill -SEGV $$", Reason.FIREWALL_REFUSED),
    ],
)
async def test_what_the_tool_says_is_told(tmp_path: Path, body: str, reason: Reason) -> None:
    with pytest.raises(Fault) as caught:
        await Nft(tool(tmp_path, body)).execute(removal())
    assert caught.value.reason is reason


@pytest.mark.parametrize(
    "body",
    [
        'echo \'{"nftables": [{"table":\'',
        "echo '{}'",
        "echo '[1]'",
        'echo \'{"nftables": ["table"]}\'',
        "kill -SEGV $$",
        f"head -c {MAX_OUTPUT + 10} /dev/zero",
        "exit 3",
    ],
)
async def test_a_listing_that_is_none_is_no_table(tmp_path: Path, body: str) -> None:
    with pytest.raises(Fault) as caught:
        await Nft(tool(tmp_path, body)).listed()
    assert caught.value.reason is Reason.FIREWALL_UNAVAILABLE


async def test_a_tool_is_ended_with_whoever_waits_for_it(tmp_path: Path) -> None:
    marker = tmp_path / "pid"
    task = asyncio.create_task(
        Nft(tool(tmp_path, f"echo $$ > {marker}.new; mv {marker}.new {marker}; exec sleep 1000")).listed()
    )
    while not marker.exists():
        await asyncio.sleep(0.01)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    with pytest.raises(ProcessLookupError):
        os.kill(int(marker.read_text()), 0)


# --- what is said of it ---------------------------------------------------------------------------------------------
async def test_where_it_cannot_be_set_it_is_drifted_and_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = ManualClock()
    nft = Nft(tool(tmp_path, "echo 'Operation not permitted' >&2; exit 1"))
    firewall = Firewall(FirewallSettings(), lambda: NODES, (), tmp_path, clock, nft)
    await firewall.look()
    await firewall.look()
    assert firewall.standing() is Standing.DRIFTED
    assert caplog.text.count("not as it should be") == 1


async def test_networks_that_are_none_do_not_lift_it(tmp_path: Path) -> None:
    """What was goes on to be held, whatever a revision says that this agent does not understand."""
    calls = tmp_path / "calls"
    keep(tmp_path, Wall(NODES))

    def refused() -> tuple[Network, ...]:
        raise Fault(Reason.FIREWALL_NETWORK, "no networks")

    nft = Nft(tool(tmp_path, f"echo $* >> {calls}; exit 1"))
    firewall = Firewall(FirewallSettings(), refused, (), tmp_path, ManualClock(), nft)
    await firewall.resume()
    await firewall.look()
    assert calls.read_text().splitlines().count("-j -f -") == 2
    assert firewall.standing() is Standing.DRIFTED


async def test_where_it_is_off_nothing_is_done(tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    nft = Nft(tool(tmp_path, f"echo $* >> {calls}"))
    firewall = Firewall(FirewallSettings(enabled=False), lambda: NODES, (), tmp_path, ManualClock(), nft)
    running = asyncio.create_task(firewall.run())
    await asyncio.sleep(0)
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    assert (calls.exists(), firewall.standing()) == (False, Standing.OFF)
