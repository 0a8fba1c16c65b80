"""Attack class "one-time token raced" (SPIRE 1.14.6), by the protocol's messages: 100 parallel uses over three
authorities: one succeeds."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

from foundation.faults import Fault
from tests.support.installation import installation
from tests.support.node import HERE, node_id, software_node

USES = 100


async def test_by_many_machines(tmp_path: Path) -> None:
    """Each with its own key: the token is bound to the first, and the others are told so."""
    async with installation(tmp_path / "site", without_tpm=("node/*",)) as site:
        token = await site.token()
        services = [site.service, site.another_process(), site.another_process()]

        async def use(number: int) -> str:
            node, enrolment = software_node(), services[number % 3].enrolment
            try:
                first = node.begin(token)
                await enrolment.complete(node.complete(first, await enrolment.begin(first, HERE)), HERE)
            except Fault as fault:
                return fault.reason.code
            return "issued"

        outcomes = Counter(await asyncio.gather(*(use(number) for number in range(USES))))
        rows = await site.authority.ledger.page(node_id())
    assert outcomes["issued"] == 1
    # Who comes once the token is spent shows no valid one: a stranger, who is told no more than that.
    assert set(outcomes) <= {"issued", "token_bound_elsewhere", "token_used", "enrolment_refused"}
    assert len(rows) == 1


async def test_by_one_machine_in_many_sessions(tmp_path: Path) -> None:
    """The same machine may begin as often as it likes; it gets one certificate for its token."""
    async with installation(tmp_path / "site", without_tpm=("node/*",)) as site:
        token = await site.token()
        services = [site.service, site.another_process(), site.another_process()]
        node = software_node()
        first = node.begin(token)
        seconds = [
            node.complete(first, await services[number % 3].enrolment.begin(first, HERE)) for number in range(USES + 1)
        ]

        async def use(number: int) -> str:
            try:
                await services[number % 3].enrolment.complete(seconds[number], HERE)
            except Fault as fault:
                return fault.reason.code
            return "issued"

        outcomes = Counter(await asyncio.gather(*(use(number) for number in range(USES))))
        late = await use(USES)
        issued = [row for row in await site.authority.ledger.page(node_id()) if row.certificate]
    assert outcomes["issued"] == 1
    assert late == "token_used"
    assert len(issued) == 1
