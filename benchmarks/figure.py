"""One figure that a user reads, with its goal and its peer measured in the same run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

WIDTH = 170
LATEST = Path(__file__).resolve().parent / "results" / "latest.json"


@dataclass(frozen=True, slots=True)
class Figure:
    """`goal` reads as a text (`at most 150`), empty when there is none; `reached` says whether `value` (or `ratio`)
    meets it. Peer fields are empty when the figure has no peer. `spread` is the lowest and the highest of what `value`,
    or `ratio` where there is a peer, is the median of. `command` repeats the measurement."""

    figure: str
    value: float
    unit: str
    goal: str
    reached: bool
    command: str
    peer: str = ""
    peer_value: float | None = None
    ratio: float | None = None
    spread: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """A figure that could not be measured, and why."""

    figure: str
    why: str


@dataclass(frozen=True, slots=True)
class Pairs:
    """Ours and a peer's, measured in turn: what they are the median of. `least` or `most` bounds their ratio."""

    own: Sequence[float]
    peers: Sequence[float]
    peer: str
    least: float | None = None
    most: float | None = None

    def figure(self, name: str, unit: str, command: str) -> Figure:
        """The median of the ratios, pair by pair, which suffers least from what else the machine does."""
        ratios = [own / peer for own, peer in zip(self.own, self.peers, strict=True)]
        ratio = median(ratios)
        goal, reached = "", True
        if self.least is not None:
            goal, reached = f"at least {self.least:g}x", ratio >= self.least
        if self.most is not None:
            goal, reached = f"at most {self.most:g}x", ratio <= self.most
        own, peer = _short(median(self.own)), _short(median(self.peers))
        spread = (_short(min(ratios)), _short(max(ratios)))
        return Figure(name, own, unit, goal, reached, command, self.peer, peer, round(ratio, 3), spread)


def at_most(name: str, value: float, unit: str, goal: float, command: str, of: Sequence[float] | None = None) -> Figure:
    """A figure that should stay under `goal`; `of` are the measurements that it sums up."""
    spread = (_short(min(of)), _short(max(of))) if of else None
    return Figure(name, _short(value), unit, f"at most {goal:g}", value <= goal, command, spread=spread)


def at_least(
    name: str, value: float, unit: str, goal: float, command: str, of: Sequence[float] | None = None
) -> Figure:
    """A figure that should reach `goal`; `of` are the measurements that it sums up."""
    spread = (_short(min(of)), _short(max(of))) if of else None
    return Figure(name, _short(value), unit, f"at least {goal:g}", value >= goal, command, spread=spread)


def alone(name: str, value: float, unit: str, command: str, of: Sequence[float] | None = None) -> Figure:
    """A figure without goal and peer."""
    spread = (_short(min(of)), _short(max(of))) if of else None
    return Figure(name, _short(value), unit, "", True, command, spread=spread)


def keep(found: Iterable[Figure | Failure]) -> None:
    """Merge into `results/latest.json`, by name. What failed is taken out: an old figure would pass for a new one."""
    known = {str(row["figure"]): row for row in _read()}
    for each in found:
        known.pop(each.figure, None)
        if isinstance(each, Figure):
            known[each.figure] = asdict(each)
    LATEST.parent.mkdir(exist_ok=True)
    LATEST.write_text(json.dumps([known[name] for name in sorted(known)], indent=1) + "\n", encoding="utf-8")


def show(found: Iterable[Figure | Failure]) -> None:
    """Print them as a table."""
    table = Table("figure", "value", "goal", "reached", "peer", "ratio", "lowest, highest")
    for each in found:
        if isinstance(each, Failure):
            table.add_row(each.figure, "FAILED", "", "NO", each.why[:200], "", "")
            continue
        peer = f"{each.peer} {each.peer_value:g}" if each.peer_value is not None else ""
        ratio = f"{each.ratio:g}" if each.ratio is not None else ""
        spread = f"{each.spread[0]:g}, {each.spread[1]:g}" if each.spread else ""
        value, reached = f"{each.value:g} {each.unit}", "yes" if each.reached else "NO"
        table.add_row(each.figure, value, each.goal or "none", reached, peer, ratio, spread)
    Console(width=WIDTH).print(table)


def _read() -> list[dict[str, object]]:
    rows: list[dict[str, object]] = json.loads(LATEST.read_text(encoding="utf-8")) if LATEST.exists() else []
    return rows


def _short(value: float) -> float:
    return float(f"{value:.4g}")
