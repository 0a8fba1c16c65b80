"""How a gateway looks on a terminal: `sallyport top`. Values in, something to print out."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from foundation.reasons import Reason
from gateway.live import BEYOND, Live, RouteCounts

_TONES = {"fresh": "green", "stale": "yellow", "expired": "bold red"}
_CAUSES = {"cut_by_revocation": "revocation", "cut_by_change": "change", "cut_by_deadline": "deadline"}


def top_view(now: Live, before: Live | None, *, rows: int = 12) -> RenderableType:
    """The state `now`, with rates since `before`; since the start where there is none before. At most `rows` routes and
    as many reasons."""
    seconds = max(now.at - before.at, 0.001) if before is not None else 0.0
    grown = {name: counts.since(before.routes.get(name) if before else None) for name, counts in now.routes.items()}
    parts: list[RenderableType] = [
        Columns([_trust(now), _traffic(now, grown, seconds), _cuts(now, before)], expand=False, padding=(0, 1)),
        Text(),
        _routes(grown, seconds, rows),
        Text(),
        _refusals(now, before, seconds, rows),
    ]
    warnings = [Text(f"! {text}", "bold yellow") for text in (*_waiting(now), *now.notes)]
    return Group(*warnings, *parts)


def _waiting(now: Live) -> Iterable[str]:
    return (f"waiting for {now.waiting_for}",) if now.waiting_for else ()


def _trust(now: Live) -> Panel:
    age = f"{now.staleness or 'unknown'}, {now.heartbeat_age:.0f} s"
    return _panel(
        "trust",
        ("time", f"{datetime.fromtimestamp(now.at, UTC):%H:%M:%S} UTC", ""),
        ("facts", age, _TONES.get(now.staleness, "bold red")),
        ("revision", f"{now.revision}  {now.digest[:12]}", ""),
        ("revocations", str(now.revocations), ""),
        ("identities", str(now.identities), ""),
    )


def _traffic(now: Live, grown: dict[str, RouteCounts], seconds: float) -> Panel:
    ended, refused, failed = (sum(getattr(each, part) for each in grown.values()) for part in _COUNTED)
    return _panel(
        "traffic" if seconds else "traffic since the start",
        ("requests", _rate(ended, seconds), "bold"),
        ("refused", _rate(refused, seconds), "yellow" if refused else ""),
        ("failed", _rate(failed, seconds), "red" if failed else ""),
        ("connections", f"{now.connections}", ""),
        ("streams", f"{sum(each.streams for each in grown.values())} of {now.open} under way", ""),
    )


_COUNTED = ("ended", "refused", "failed")


def _cuts(now: Live, before: Live | None) -> Panel:
    old = before.cuts if before is not None else {}
    rows = []
    for code, name in _CAUSES.items():
        count = now.cuts.get(code, 0)
        fresh = count - old.get(code, 0) if before is not None else 0
        rows.append((name, f"{count}" + (f"  +{fresh}" if fresh > 0 else ""), "bold" if fresh > 0 else ""))
    rows.append(("late", str(now.late_cuts), "bold red" if now.late_cuts else ""))
    rows.append(("workers", str(now.workers), "" if now.workers else "bold red"))
    return _panel("cuts by", *rows)


def _panel(title: str, *rows: tuple[str, str, str]) -> Panel:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(min_width=14)
    for name, value, style in rows:
        table.add_row(name, Text(value, style))
    return Panel(table, title=title, title_align="left", border_style="dim", expand=False)


def _routes(grown: dict[str, RouteCounts], seconds: float, rows: int) -> RenderableType:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("route", min_width=16, max_width=40, no_wrap=True)
    for heading in ("requests", "refused", "failed", "p50", "p99", "streams"):
        table.add_column(heading, justify="right", min_width=9)
    busiest = sorted(grown.items(), key=lambda each: (-each[1].ended, -each[1].streams, each[0]))
    for name, counts in busiest[:rows]:
        table.add_row(
            Text(name or "(no route)"),
            _rate(counts.ended, seconds),
            Text(_rate(counts.refused, seconds), "yellow" if counts.refused else "dim"),
            Text(_rate(counts.failed, seconds), "red" if counts.failed else "dim"),
            _lasting(counts.quantile(0.5)),
            _lasting(counts.quantile(0.99)),
            str(counts.streams or "-"),
        )
    if len(busiest) > rows:
        table.add_row(Text(f"… {len(busiest) - rows} more", "dim"))
    return table if grown else Text("no requests yet", "dim")


def _refusals(now: Live, before: Live | None, seconds: float, rows: int) -> RenderableType:
    old = before.refusals if before is not None else {}
    fresh = {code: count - old.get(code, 0) for code, count in now.refusals.items()}
    if not fresh:
        return Text("nothing refused", "dim")
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("refused for", min_width=16, no_wrap=True)
    for heading in ("now", "total"):
        table.add_column(heading, justify="right", min_width=9)
    table.add_column("meaning", style="dim", overflow="ellipsis", no_wrap=True)
    for code in sorted(fresh, key=lambda code: (-fresh[code], -now.refusals[code], code))[:rows]:
        rate = Text(_rate(fresh[code], seconds) if seconds else "-", "yellow" if fresh[code] else "dim")
        table.add_row(code, rate, str(now.refusals[code]), _meaning(code))
    return table


def _meaning(code: str) -> str:
    try:
        return Reason.from_code(code).meaning
    except KeyError:  # a newer gateway than this command
        return ""


def _rate(count: int, seconds: float) -> str:
    """Per second, where there is something to compare with."""
    if not seconds:
        return str(count) if count else "-"
    rate = count / seconds
    if not count:
        return "-"
    return f"{rate:.0f}/s" if rate >= 10 else f"{rate:.1f}/s"


def _lasting(seconds: float | None) -> str:
    """A bound of a histogram: at most so long."""
    if seconds is None:
        return "-"
    if seconds == BEYOND:
        return "longer"
    return f"≤{seconds * 1000:g} ms" if seconds < 1 else f"≤{seconds:g} s"
