"""How answers about access look on a terminal. Nothing in them is read as markup."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from foundation.reasons import Reason
from policies.access.classes import ANY, DIMENSIONS
from policies.explain import instant

_NAMES = 20
_Document = Mapping[str, Any]


def who_view(found: _Document) -> RenderableType:
    """Classes first, then identities, those with the same access together."""
    head = Text.assemble("route ", (found["route"], "bold"), (f"  by {_policy(found)}", "dim"))
    parts: list[RenderableType] = [head, Text("by what the policy names", "bold"), _classes(found["classes"])]
    if found["also_reads"]:
        places = ", ".join(found["also_reads"])
        parts.append(Text(f"  policy also reads {places}: an answer may hang on that", "dim"))
    if found["asked"] or found["unasked"]:
        allowed = len(found["identities"])
        parts += [Text(f"of {found['asked']} identities, {allowed} can reach it", "bold"), *_identities(found)]
    if found["unasked"]:
        parts.append(Text(f"  {found['unasked']} identities were not asked about: there are too many", "bold red"))
    return Group(*parts)


def what_view(found: _Document) -> RenderableType:
    """Route after route, the grants that lead there."""
    roles = ", ".join(found["roles"]) or "no role"
    facts = f"  {found['kind']}, {roles}, tier {found['tier']}, segment {', '.join(found['segments']) or 'none'}"
    parts: list[RenderableType] = [Text.assemble((found["identity"], "bold"), (f"{facts}; by {_policy(found)}", "dim"))]
    if found["refusal"]:
        parts.append(_shut_out(found["refusal"]))
    if not found["routes"]:
        parts.append(Text("  no route"))
    for each in found["routes"]:
        parts += [Text(each["route"], "bold"), *_access(each)]
    if found["unasked"]:
        parts.append(Text(f"not asked about, for there are too many: {', '.join(found['unasked'])}", "bold red"))
    return Group(*parts)


def _classes(found: Sequence[_Document] | None) -> RenderableType:
    if found is None:
        return Text("  too many combinations to ask about", "yellow")
    if not found:
        return Text("  nobody")
    told = [name for name in DIMENSIONS if any(each[name] != [ANY] for each in found)]
    table = Table(box=None, pad_edge=True)
    for name in ("kind", *told, "grants"):
        table.add_column(name, overflow="fold")
    for each in found:
        grants = dict.fromkeys(text for way in each["access"]["ways"] for text in _granted(way))
        cells = [each["kind"], *(", ".join(each[name]) for name in told), "\n".join(grants)]
        table.add_row(*map(Text, cells))
    return table


def _identities(found: _Document) -> Iterable[RenderableType]:
    alike: dict[str, list[_Document]] = {}
    for each in found["identities"]:
        alike.setdefault(repr((each["refusal"], each["ways"], each["exceptions"])), []).append(each)
    for members in alike.values():
        names = ", ".join(each["name"] for each in members[:_NAMES])
        more = f" and {len(members) - _NAMES} more (--json lists them)" if len(members) > _NAMES else ""
        yield Text.assemble((f"  {len(members)}: ", "bold"), names, more)
        if members[0]["refusal"]:
            yield _shut_out(members[0]["refusal"])
        yield from _access(members[0])


def _access(one: _Document) -> Iterable[RenderableType]:
    for way in one["ways"]:
        what = " ".join(text for text in (",".join(way["methods"]), "  ".join(way["paths"])) if text)
        yield Text.assemble(f"    {what or 'allowed'}", (f"  by {way['grant']}, {_end(way)}", "dim"))
        for each in way["through"]:
            yield Text(f"      {each}", "dim")
    for each in one["exceptions"]:
        yield Text(f"    but not {each}, which is denied", "yellow")


def _granted(way: _Document) -> Iterable[str]:
    yield f"{way['grant']}, {_end(way)}"
    yield from (f"  {each}" for each in way["through"])


def _shut_out(code: str) -> Text:
    return Text(f"    now shut out all the same: {Reason.from_code(code).meaning}", "red")


def _policy(found: _Document) -> str:
    return f"policy revision {found['revision']}" if found["revision"] else "the draft"


def _end(way: _Document) -> str:
    return f"until {instant(way['until'])[:10]}" if way["until"] is not None else "without end"
