"""How the nft tool is run."""

from __future__ import annotations

from pathlib import Path

import uvloop

from agent.firewall.nft import Nft


def test_a_tool_that_ends_before_it_reads_is_judged_by_its_status() -> None:
    async def run_often() -> None:
        nft = Nft(Path("/bin/true"))
        for _ in range(50):
            await nft.execute(b"x" * 200_000)

    uvloop.run(run_often())
