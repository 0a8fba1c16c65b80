"""One figure that a user reads, with its goal and its peer measured in the same run."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

WIDTH = 160
LATEST = Path(__file__).resolve().parent / "results" / "latest.json"


@dataclass(frozen=True, slots=True)
class Figure:
    """`goal` reads as a text (`at most 150`), empty when there is none; `reached` says whether `value` (or `ratio`)
    meets it. Peer fields are empty when the figure has no peer. `command` repeats the measurement."""

    figure: str
    value: float
    unit: str
    goal: str
    reached: bool
    command: str
    peer: str = ""
    peer_value: float | None = None
    ratio: float | None = None


def at_most(name: str, value: float, unit: str, goal: float, command: str) -> Figure:
    """A figure that should stay under `goal`."""
    return Figure(name, _short(value), unit, f"at most {goal:g}", value <= goal, command)


def against(name: str, value: float, unit: str, peer: str, peer_value: float, least: float, command: str) -> Figure:
    """A figure that should be at least `least` times its peer's."""
    goal = f"at least {least:g}x"
    return replace(beside(name, value, unit, peer, peer_value, command), goal=goal, reached=value / peer_value >= least)


def beside(name: str, value: float, unit: str, peer: str, peer_value: float, command: str) -> Figure:
    """A figure without a goal, beside its peer's."""
    ratio = round(value / peer_value, 3)
    return Figure(name, _short(value), unit, "", True, command, peer, _short(peer_value), ratio)


def write(figures: Iterable[Figure]) -> None:
    """Merge `figures` into `results/latest.json`, by name."""
    known = {str(row["figure"]): row for row in _read()}
    known.update({each.figure: asdict(each) for each in figures})
    LATEST.parent.mkdir(exist_ok=True)
    LATEST.write_text(json.dumps([known[name] for name in sorted(known)], indent=1) + "\n", encoding="utf-8")


def show(figures: Iterable[Figure]) -> None:
    """Print them as a table."""
    table = Table("figure", "value", "goal", "reached", "peer", "ratio")
    for each in figures:
        peer = f"{each.peer} {each.peer_value:g}" if each.peer_value is not None else ""
        ratio = f"{each.ratio:g}" if each.ratio is not None else ""
        table.add_row(
            each.figure,
            f"{each.value:g} {each.unit}",
            each.goal or "none",
            "yes" if each.reached else "NO",
            peer,
            ratio,
        )
    Console(width=WIDTH).print(table)


def _read() -> list[dict[str, object]]:
    rows: list[dict[str, object]] = json.loads(LATEST.read_text(encoding="utf-8")) if LATEST.exists() else []
    return rows


def _short(value: float) -> float:
    return float(f"{value:.4g}")
