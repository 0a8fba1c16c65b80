"""The settings, as the parts themselves read them: every section is parsed once, empty, and what was asked is written
down."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from foundation.fields import Fields
from foundation.reasons import Reason

_ABSENT: Any = object()
Row = tuple[str, str, str]
# What has no default needs a value to be read at all.
_REQUIRED: Mapping[str, Mapping[str, Any]] = {
    "agent.service": {"name": "metrics", "command": ["/bin/true"]},
    "agent.port": {"listen": "127.0.0.1:15432", "route": "db", "target": "edge-b"},
    "sallyport": {"trust_domain": "fleet.example"},
    "authority": {"trust_domain": "fleet.example"},
    "upstream_authority": {
        "api": "host:8445",
        "certificate": "tls.pem",
        "root": "root.pem",
        "policy_key": "policy.pub",
    },
    "hotstate.redis": {"url": "unix:///run/redis/redis.sock"},
}


class _Asked(Fields):
    """Answers with the defaults, and remembers what was asked: path, kind, default."""

    def __init__(self, path: str, rows: list[Row], given: Mapping[str, Any]) -> None:
        super().__init__(given, path, Reason.SETTING_INVALID)
        self._rows = rows

    def _note(self, name: str, kind: str, default: Any) -> None:
        text = "" if default is _ABSENT else _literal(default)
        self._rows.append((self._at(name), kind, text))

    def has(self, name: str) -> bool:
        if not super().has(name):
            self._note(name, "optional", "")
        return super().has(name)

    def text(self, name: str, default: str = _ABSENT, **more: Any) -> str:
        self._note(name, "text", default)
        return super().text(name, *(() if default is _ABSENT else (default,)), **more)

    def one_of(self, name: str, allowed: tuple[str, ...], default: str = _ABSENT) -> str:
        self._note(name, " or ".join(f'"{each}"' for each in allowed), default)
        value = self._value.get(name, default)
        return str(value)

    def flag(self, name: str, default: bool = _ABSENT) -> bool:
        self._note(name, "true or false", default)
        return super().flag(name, default)

    def integer(self, name: str, default: int = _ABSENT, *, least: int = 0, most: int = 2**63 - 1) -> int:
        self._note(name, f"{least} to {most}" if most < 2**62 else f"at least {least}", default)
        return super().integer(name, default, least=least, most=most)

    def duration(self, name: str, default: str = _ABSENT) -> float:
        self._rows.append((self._at(name), "duration", _literal(default)))
        return Fields({name: default}, self.path, self.reason).duration(name)

    def size(self, name: str, default: str = _ABSENT) -> int:
        self._rows.append((self._at(name), "size", _literal(default)))
        return Fields({name: default}, self.path, self.reason).size(name)

    def texts(self, name: str, default: tuple[str, ...] = _ABSENT, **more: Any) -> tuple[str, ...]:
        self._note(name, "list of texts", default)
        return super().texts(name, default, **more)

    def mapping(self, name: str, default: Mapping[str, str] = _ABSENT, **more: Any) -> dict[str, str]:
        self._note(name, "table of texts", ())
        return {}

    def each(self, name: str, read: Callable[[Fields], Any], **more: Any) -> tuple[Any, ...]:
        self._note(name, "list of tables", ())
        return ()

    def section(self, name: str, *, optional: bool = False) -> Fields:
        return _Asked(self._at(name), self._rows, {})


def settings_rows(sections: Mapping[str, Callable[[Fields], object]]) -> list[Row]:
    """Path, kind and default of every setting, in the order in which the parts read them."""
    rows: list[Row] = []
    for name, parse in sections.items():
        parse(_Asked(name, rows, _REQUIRED.get(name, {})))
    return list(dict.fromkeys(rows))


def _literal(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(_literal(each) for each in value) + "]"
    return f'"{value}"' if isinstance(value, str) else str(value)
