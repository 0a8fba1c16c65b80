"""Row "smuggling", by search: thousands of broken requests against five real servers behind the gateway. None of them
is ever two requests, or another request than the one authorised, and what the gateway accepts no server reads in
another way. `make differential` searches for longer."""

from __future__ import annotations

import itertools
from pathlib import Path

from tests.support.differential import differential
from tests.support.mutation import SEEDS, mutants

CASES = 8_000
PEERS = {"nginx", "haproxy", "caddy", "envoy", "aiohttp"}


async def test_no_mutant_is_another_request_behind_us(tmp_path: Path) -> None:
    async with differential(tmp_path) as method:
        tally = await method.run((*SEEDS, *itertools.islice(mutants(1), CASES)), 1)
    assert tally.cases == CASES + len(SEEDS)
    assert tally.refused > CASES / 2
    assert tally.forwarded > CASES / 10
    assert tally.unfinished > CASES / 100
    assert set(tally.compared) == set(tally.instead) == PEERS
    assert min(tally.compared.values()) > CASES / 20
    assert min(tally.instead.values()) > CASES / 20
