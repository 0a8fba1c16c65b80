"""What tests of the agent share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from agent.settings import Address, AgentSettings
from tests.fakes.clock import ManualClock
from tests.support.swtpm import EmulatedTpm


class EagerClock(ManualClock):
    """Time passes as soon as somebody waits."""

    async def sleep(self, seconds: float) -> None:
        self.advance(seconds)


def quiet(_step: str) -> None:
    """A report that nobody reads."""


def settings_for(folder: Path, authority: str, device: EmulatedTpm | None) -> AgentSettings:
    """Settings of a node named edge-1 with its files below `folder`; without a TPM where `device` is `None`."""
    address = Address.parse(authority, "authority")
    base = AgentSettings(directory=folder / "node", authority=address, renewal=address, node="edge-1", timeout=10)
    if device is None:
        return replace(base, attestation="none", tcti="none:")
    return replace(base, tcti=device.tcti, event_log=device.event_log)
