"""Appends to an audit log until it is killed, telling each index on standard output once it is acknowledged."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from foundation.audit.log import MerkleAuditLog
from foundation.audit.settings import AuditSettings
from foundation.clock import SystemClock
from foundation.ports import AuditEvent


async def append_for_ever(directory: Path) -> None:
    log = await MerkleAuditLog.open(AuditSettings(directory=directory, segment_bytes=8192, head_every=0), SystemClock())

    async def one(lane: int) -> None:
        while True:
            index = await log.append(AuditEvent("node.enrolled", "system", f"lane-{lane}", detail={"pad": "x" * 300}))
            os.write(1, b"%d\n" % index)

    async with asyncio.TaskGroup() as lanes:
        for lane in range(4):
            lanes.create_task(one(lane))


if __name__ == "__main__":
    asyncio.run(append_for_ever(Path(sys.argv[1])))
