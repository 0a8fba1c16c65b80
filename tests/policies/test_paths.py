"""Paths of grants: what Rego covers is what docs/policy.md says they cover, over many patterns and paths."""

from __future__ import annotations

import asyncio
import random

from policies.lifecycle.workspace import default_policy, load_workspace
from tests.support.policy import MINIMAL, engine_of
from tests.support.workspaces import query

SEGMENTS = ("a", "b", "*", "**")
ROUTES = 60
PATHS = 80


def covers(pattern: tuple[str, ...], path: tuple[str, ...]) -> bool:
    """What a pattern means, by recursion over both."""
    if pattern == ("**",):
        return True
    if not pattern or not path:
        return pattern == path
    fits = path[0] != "" if pattern[0] == "*" else pattern[0] == path[0]
    return fits and covers(pattern[1:], path[1:])


def test_a_pattern_covers_what_its_definition_says() -> None:
    chance = random.Random(20261123)
    patterns = [_pattern(chance) for _ in range(ROUTES)]
    routes = [f"  - {{name: r{i}, prefix: /r{i}, upstreams: ['http://h'], kinds: [node]}}" for i in range(ROUTES)]
    grants = [
        f"  - {{id: g{i}, role: a, route: r{i}, methods: [GET], paths: ['/{'/'.join(pattern)}'], expires: 2030-01-01}}"
        for i, pattern in enumerate(patterns)
    ]
    files = {
        **MINIMAL,
        "routes.yaml": "\n".join(["routes:", *routes]).encode(),
        "grants.yaml": "\n".join(["roles: {a: b}", "grants:", *grants]).encode(),
    }
    engine = engine_of(load_workspace(files, default_policy()))
    paths = [tuple(chance.choices(("a", "b", "*", "", "a/b"), k=chance.randrange(5))) for _ in range(PATHS)]
    wrong = [
        (pattern, path)
        for number, pattern in enumerate(patterns)
        for path in paths
        if engine.decide_now(query(f"r{number}", path=path, roles=("a",))).allow is not covers(pattern, path)
    ]
    asyncio.run(engine.close())
    assert wrong == []
    assert sum(covers(pattern, path) for pattern in patterns for path in paths) > 100


def _pattern(chance: random.Random) -> tuple[str, ...]:
    middle = tuple(chance.choices(SEGMENTS[:3], k=chance.randrange(4)))
    end = chance.choice(((), ("**",), ("",) if middle else ()))
    return middle + end
