"""Nodes' tunnels, held by one program (benchmarks/load, `tunnels`), and a gateway with routes for streams."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.generator import Generator
from benchmarks.holder import Holder
from benchmarks.site import Site, enlist, initialise

ROUTE, ROLE = "sink", "role-0"
WORKSPACE = {
    "routes.yaml": f"routes:\n  - {{name: {ROUTE}, type: stream, service: sink, kinds: [node]}}\n".encode(),
    "grants.yaml": (
        f"roles: {{{ROLE}: Streams, role-1: Nothing}}\n"
        f"grants:\n  - {{id: g0, role: {ROLE}, route: {ROUTE}, expires: 2030-01-01}}\n"
    ).encode(),
    "segments.yaml": b"segments:\n  - name: edge\n    reaches: [edge]\n",
}


class TunnelHolder(Holder):
    """One process that holds tunnels of many nodes to one gateway. Members of a group are streams, or tunnels."""

    command = "tunnels"

    def serve(self, client: str) -> None:
        """A tunnel of `client` that takes every stream."""
        self._ask("serve", client)

    def idle(self, group: str, client: str, count: int) -> float:
        """`count` tunnels of `client` (`*`: of each node in turn) that carry nothing; how many seconds that took."""
        return float(self._ask("idle", group, client, count)["seconds"])

    def streams(self, group: str, client: str, count: int, targets: Sequence[str]) -> float:
        """A tunnel of `client` with `count` streams to `targets` in turn; how many seconds that took. Raises
        `RuntimeError` when one is refused."""
        return float(self._ask("open", group, client, count, ROUTE, ",".join(targets))["seconds"])


@dataclass(frozen=True, slots=True)
class Fleet:
    """Nodes with certificates that may have streams to each other, and a gateway that does not serve yet."""

    folder: Path
    site: Site
    generator: Generator


@contextmanager
def fleet(nodes: int) -> Iterator[Fleet]:
    """Made for as long as the block lasts."""
    with tempfile.TemporaryDirectory(prefix="sallyport-bench-") as made:
        folder = Path(made)
        site = initialise(folder, WORKSPACE)
        enlist(site, nodes, (ROLE,), certified=nodes)
        site.set("gateway.listener", connections_per_identity=10_000)
        site.set("gateway.overload", exchanges=100_000)  # a stream between two workers counts at both
        site.set("policy", decision_timeout="5s")  # thousands of streams open as fast as they can
        yield Fleet(folder, site, Generator.make(folder, site))
