"""Which settings can change while the process serves. Pure values.

What stands in `[gateway]` and `[policy]` is the workers': they are replaced by ones with the new settings. Everything
else was opened at the start, and needs a restart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

LIVE = ("gateway.", "policy.", "telemetry.log_level")
FIXED = ("gateway.listener.host", "gateway.listener.port")
_ABSENT = object()


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[str, ...]:
    """The paths of settings that differ between two documents, in order."""
    one, other = dict(_flat(before, "")), dict(_flat(after, ""))
    return tuple(sorted(path for path in one | other if _differ(one.get(path, _ABSENT), other.get(path, _ABSENT))))


def _differ(one: object, other: object) -> bool:
    return type(one) is not type(other) or one != other


def needs_restart(path: str) -> bool:
    """Whether a change of this setting waits for the next start."""
    return path in FIXED or not path.startswith(LIVE)


def _flat(document: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    for name, value in document.items():
        below = f"{path}.{name}" if path else name
        if isinstance(value, Mapping):
            yield from _flat(value, below)
        else:
            yield below, value
