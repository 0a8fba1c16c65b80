"""How policy's values look on a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from foundation.faults import Fault
from policies.explain import Explanation, instant

if TYPE_CHECKING:  # an explanation needs no compiler
    from policies.lifecycle.checking import TestReport
    from policies.lifecycle.revision import LoadedRevision


def explanation_view(explained: Explanation) -> RenderableType:
    """The explanation, most important thing first. Nothing in it is read as markup."""
    verdict = Text("allowed", "bold green") if explained.allowed else Text("denied", "bold red")
    head = Text.assemble(verdict, f"  {explained.what}  on route {explained.route or '(none)'}")
    codes = ", ".join(reason.code for reason in explained.reasons)
    none = "no policy" if explained.node else "the draft"  # revisions count from 1
    policy = f"policy revision {explained.revision}" if explained.revision else none
    about = Text(f"{explained.who} at {instant(explained.at)}, {policy}: {codes}", "dim")
    parts: list[RenderableType] = [head, about, *(Text(f"  • {text}") for text in explained.sentences)]
    if explained.grant:
        parts.append(Text(f"  by grant {explained.grant}"))
    if explained.near_misses:
        parts += [Text("grants that came near", "bold"), _near_misses(explained)]
    if explained.remedies:
        parts += [Text("what to do", "bold"), *(Text(f"  → {remedy}") for remedy in explained.remedies)]
    return Group(*parts)


def faults_view(faults: Iterable[Fault]) -> RenderableType:
    """One line each, as compilers write them: file, line, what is wrong."""
    return Group(*(_fault(fault) for fault in faults))


def tests_view(report: TestReport) -> RenderableType:
    """What failed, or what no test covers; then a summary."""
    passed = len(report.tests) - len(report.failed)
    parts = [Text.assemble((f"{test.where}: ", "bold"), f"{test.name} {test.outcome}") for test in report.failed]
    parts += [Text.assemble((f"{where}: ", "bold"), "no test covers this") for where in report.uncovered]
    tone = "bold red" if report.failed else "green"
    summary = Text.assemble((f"{passed} of {len(report.tests)} tests passed", tone))
    if not report.failed:
        summary.append(f", {report.coverage:.1f} % of lines covered")
    return Group(*parts, summary)


def revision_view(revision: LoadedRevision) -> RenderableType:
    """A verified revision: number, digests, routes."""
    table = Table(box=None, show_header=False, pad_edge=False)
    rows = {
        "revision": str(revision.number),
        "digest": revision.digest,
        "created": instant(revision.created),
        "policy": revision.compiled.digest,
        "routes": ", ".join(route.name for route in revision.routes),
        "reads": ", ".join(".".join(path) for path in revision.compiled.reads),
    }
    for name, value in rows.items():
        table.add_row(Text(name, "bold"), Text(value))
    return table


def _fault(fault: Fault) -> Text:
    where = f"{fault.field}: " if fault.field else ""
    return Text.assemble((where, "bold"), fault.detail or fault.reason.meaning, (f"  [{fault.reason.code}]", "dim"))


def _near_misses(explained: Explanation) -> Table:
    table = Table(box=None, pad_edge=True)
    for heading in ("grant", "role", "ends", "lacks"):
        table.add_column(heading, style="dim" if heading == "ends" else None, overflow="fold")
    for miss in explained.near_misses:
        table.add_row(Text(miss.grant), Text(miss.role), instant(miss.expires)[:10], Text("\n".join(miss.lacks)))
    return table
