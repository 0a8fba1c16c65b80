"""Writes docs/reference from the code, or with `--check` fails when a file there is stale.

Generators are functions of no arguments that return a file's text; each is listed in `_GENERATED`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from foundation.reasons import Reason

REFERENCE = Path(__file__).resolve().parent / "reference"


def reasons() -> str:
    """The closed vocabulary, one row a code."""
    rows = [f"| `{each.code}` | {each.status} | {each.meaning} | {each.remedy} |" for each in Reason]
    head = [
        "# Reason codes",
        "",
        "Generated from `foundation/reasons.py` by `make generate`. Every refusal carries one of these codes, with its",
        "outward HTTP status; a code is never renamed and never reused.",
        "",
        "| code | status | meaning | what to do |",
        "|---|---|---|---|",
    ]
    return "\n".join([*head, *rows]) + "\n"


_GENERATED: dict[str, Callable[[], str]] = {"reasons.md": reasons}


def main() -> int:
    check = "--check" in sys.argv[1:]
    stale = [name for name, generate in _GENERATED.items() if _differs(name, generate())]
    for name in stale:
        if check:
            print(f"docs/reference/{name} is stale: run `make generate`", file=sys.stderr)
        else:
            REFERENCE.mkdir(exist_ok=True)
            (REFERENCE / name).write_text(_GENERATED[name](), encoding="utf-8")
    return 1 if check and stale else 0


def _differs(name: str, text: str) -> bool:
    path = REFERENCE / name
    return not path.exists() or path.read_text(encoding="utf-8") != text


if __name__ == "__main__":
    raise SystemExit(main())
