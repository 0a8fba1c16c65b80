"""A process with an outbox that adds numbers and delivers them, until it is killed.

    python -m tests.support.outbox_process FOLDER HOST:PORT CERTIFICATE KEY ROOT FIRST COUNT

Prints each number once `add` took it, `delivered` when nothing waits. With COUNT 0 it only delivers, and ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from pathlib import Path

from agent.authority import AuthorityApi
from agent.outbox import Outbox, OutboxSettings
from agent.settings import Address
from foundation.clock import SystemClock
from foundation.faults import Fault
from foundation.tls import KeyPair, client_context
from foundation.wire.records import RecordKind


async def main(words: list[str]) -> None:
    folder, where, certificate, key, root, first, count = words
    context = client_context(Path(root).read_bytes(), pair=KeyPair(Path(certificate), Path(key)))
    api = AuthorityApi(Address.parse(where, "where"), lambda: context, 10.0)
    outbox = Outbox.open(Path(folder), SystemClock(), OutboxSettings(every=1.0))

    async def delivering() -> None:
        while True:
            with contextlib.suppress(Fault):
                await outbox.deliver_all(api.deliver)
            await asyncio.sleep(0.001)

    if int(count) == 0:
        await outbox.deliver_all(api.deliver)
        outbox.close()
        return
    delivery = asyncio.create_task(delivering())
    for number in range(int(first), int(first) + int(count)):
        outbox.add(RecordKind.DECISION, {"n": number, "padding": "x" * 200})
        sys.stdout.write(f"{number}\n")
        sys.stdout.flush()
        await asyncio.sleep(0)
    await delivery


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
