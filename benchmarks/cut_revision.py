"""How soon a policy revision reaches 10,000 open streams, and what that does to others.

1,000 identities have ten streams each, on 101 routes, of which one is closed at a time. Each revision takes away all
grants of one route, gives back those of the route before it, and moves the end of every other grant. So it touches
every stream: all 10,000 are decided again, and the 100 of that route, which lie evenly among the others, are cut. Time
counts from the API's answer, which follows the commit at once (before it, the API tries whether the revision loads), to
the last close that a client sees. The streams are opened again, and so again, 100 times: `cut_10000_p99_ms` is the 99th
percentile of the hundred.

`cut_10000_every_ms` is the longest of a few revisions that take away every grant: all 10,000 streams are cut, and the
last close is counted.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.field import say
from benchmarks.figure import Failure, Figure, alone, at_most
from benchmarks.streams import Cut, Standing, bystanders, p99, standing, tell
from foundation.clock import SystemClock
from policies.compile import compile_policy, policy_digest
from policies.engine import CompiledPolicy
from policies.lifecycle.revision import assemble
from policies.lifecycle.workspace import Workspace, read_workspace
from policies.settings import CompileSettings
from policies.signing import SigningKey, load_signing_key

COMMAND = "python -m benchmarks.run cut_revision"
GOAL_MS = 2_000.0
ENFORCED_SECONDS = 30.0
ROUTES_OPEN, EACH = 101, 100


@dataclass(slots=True)
class Publishing:
    """Publishes revisions of the site's workspace that differ in which routes have grants."""

    stands: Standing
    workspace: Workspace
    compiled: CompiledPolicy
    key: SigningKey
    number: int = 1
    opened: dict[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, stands: Standing) -> Publishing:
        state = stands.site.state
        workspace = read_workspace(state / "policy")
        compiled = compile_policy(workspace.rego, workspace.data, CompileSettings())
        return cls(stands, workspace, compiled, load_signing_key(state / "authority" / "policy.key"))

    def without(self, *routes: int) -> bytes:
        """The next revision, in which nobody has a grant on `routes`."""
        names = {f"r{route}" for route in routes}
        self.number += 1
        workspace = self.workspace.data["workspace"]
        grants = {route: self._later(held) for route, held in workspace["grants"].items() if route not in names}
        data = {**self.workspace.data, "workspace": {**workspace, "grants": grants}}
        compiled = replace(self.compiled, data=data, digest=policy_digest(self.compiled.rego, data))
        return assemble(compiled, self.workspace.routes, self.number, int(SystemClock().now())).signed(self.key)

    def _later(self, held: Mapping[str, Sequence[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
        """A route's grants by role, each of which ends some seconds later in every revision."""
        return {
            role: [{**grant, "expires": grant["expires"] + self.number} for grant in grants]
            for role, grants in held.items()
        }

    def publish(self, archive: bytes) -> None:
        """Hand it to the authority; when this returns it is committed."""
        self.stands.site.operator.send("POST", "/v1/policy/revisions", archive, "application/octet-stream")

    def wait_enforced(self) -> None:
        """Until every worker decides by the newest revision. Raises `RuntimeError` when that takes too long."""
        until = time.monotonic() + ENFORCED_SECONDS
        while self.stands.site.metric("sallyport_policy_revision") < self.number:
            if time.monotonic() > until:
                raise RuntimeError(f"revision {self.number} is not enforced after {ENFORCED_SECONDS:.0f} s")
            time.sleep(0.05)

    def cut(self, routes: Sequence[int]) -> Cut:
        """One revision that takes these routes' grants away, and with them their streams."""
        archive = self.without(*routes)
        begin, spent = self.stands.calm()
        self.publish(archive)
        return self.stands.cut([self._group(route) for route in routes], begin, time.time_ns(), spent)

    def open(self, route: int) -> None:
        """Open this route's streams, for the first time or again."""
        self.opened[route] = self.opened.get(route, 0) + 1
        self.stands.holder.open(self._group(route), "*", EACH, f"/r{route}/files/stream")

    def _group(self, route: int) -> str:
        return f"r{route}-{self.opened[route]}"


def figures(short: bool) -> Iterator[Figure | Failure]:
    count, whole = (5, 1) if short else (100, 2)
    routes = ROUTES_OPEN // 2 if short else ROUTES_OPEN
    with standing() as stands:
        publishing, began = Publishing.of(stands), time.monotonic()
        for route in range(routes):
            publishing.open(route)
        say(f"{routes * EACH} streams are open after {time.monotonic() - began:.0f} s")
        publishing.cut([0])  # from now on 10,000 are open
        cuts = []
        for number in range(1, count + 1):
            cuts.append(publishing.cut([number % routes]))
            publishing.open((number - 1) % routes)
            tell("revision", number, count, cuts[-1])
        answered = [each.answered for each in cuts]
        yield at_most("cut_10000_p99_ms", p99(answered), "ms", GOAL_MS, COMMAND, answered)
        yield from bystanders("cut_10000", cuts, COMMAND)
        yield _everything(publishing, [route for route in range(routes) if route != count % routes], whole)


def _everything(publishing: Publishing, routes: Sequence[int], count: int) -> Figure:
    """Revisions that leave nobody a grant on `routes`, whose streams are all that are open."""
    cuts = []
    for number in range(1, count + 1):
        cuts.append(publishing.cut(routes))
        tell("revision that cuts all", number, count, cuts[-1])
        if number < count:
            publishing.publish(publishing.without())
            publishing.wait_enforced()
            for route in routes:
                publishing.open(route)
    answered = [each.answered for each in cuts]
    return alone("cut_10000_every_ms", max(answered), "ms", COMMAND, answered)
