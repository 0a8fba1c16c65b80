"""How the nft tool is run."""

from __future__ import annotations

import asyncio
from pathlib import Path

import uvloop

from agent.firewall.nft import Nft


def test_it_reads_what_it_is_given_on_every_event_loop(tmp_path: Path) -> None:
    tool, given = tmp_path / "nft", b"x" * 200_000
    tool.write_text(f"#!/bin/sh\ncat /dev/stdin > {tmp_path}/read\n")  # opened anew, as nft does
    tool.chmod(0o755)
    for run in (uvloop.run, asyncio.run):
        run(Nft(tool).execute(given))
        assert (tmp_path / "read").read_bytes() == given
        (tmp_path / "read").unlink()


def test_a_tool_that_ends_before_it_reads_is_judged_by_its_status() -> None:
    async def run_often() -> None:
        nft = Nft(Path("/bin/true"))
        for _ in range(50):
            await nft.execute(b"x" * 200_000)

    uvloop.run(run_often())
