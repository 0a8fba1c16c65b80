"""Reading outside data into types, once, at the border.

`Fields` wraps a mapping that came from JSON, TOML or YAML: each getter names the field's type and bounds, and
`finish` refuses what nobody asked for. Every error names the full path of the field.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from foundation.faults import Fault
from foundation.reasons import Reason

T = TypeVar("T")
_MISSING: Any = object()
_DURATION = re.compile(r"(\d{1,9})(ms|s|m|h|d)", re.ASCII)
_MILLISECONDS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_SIZE = re.compile(r"(\d{1,12})(B|KiB|MiB|GiB)", re.ASCII)
_SIZES = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


class Fields:
    """A mapping under strict reading. `reason` is the fault's reason when a field is missing, of the wrong type or out
    of bounds; `unknown` when a field is not expected (by default the same)."""

    def __init__(self, value: object, path: str, reason: Reason, *, unknown: Reason | None = None) -> None:
        self.path = path
        self.reason = reason
        self._unknown = unknown or reason
        if not isinstance(value, Mapping):
            raise Fault(reason, "expected an object", field=path)
        self._value: Mapping[str, Any] = value
        self._asked: set[str] = set()

    @classmethod
    def from_json(cls, raw: bytes, path: str, reason: Reason, *, max_bytes: int) -> Fields:
        """Fields of one JSON object in UTF-8: no duplicate keys, no NaN or infinity, nothing left over."""
        if len(raw) > max_bytes:
            raise Fault(Reason.MESSAGE_TOO_LARGE, f"{len(raw)} bytes, at most {max_bytes} are allowed", field=path)
        return cls(strict_json(raw, path, reason), path, reason)

    def fault(self, name: str, detail: str) -> Fault:
        """A fault at the field `name` below this path."""
        return Fault(self.reason, detail, field=self._at(name))

    def has(self, name: str) -> bool:
        return name in self._value

    @property
    def names(self) -> tuple[str, ...]:
        """The fields that there are, where their names are values too."""
        return tuple(map(str, self._value))

    def is_text(self, name: str) -> bool:
        """Whether the field is there and a string, for fields of two forms."""
        return isinstance(self._value.get(name), str)

    def text(self, name: str, default: str = _MISSING, *, max_length: int = 4096) -> str:
        value = self._get(name, default)
        if not isinstance(value, str) or len(value) > max_length:
            raise self.fault(name, f"expected a string of at most {max_length} characters")
        return value

    def one_of(self, name: str, allowed: tuple[str, ...], default: str = _MISSING) -> str:
        value = self.text(name, default)
        if value not in allowed:
            raise self.fault(name, f"expected one of {', '.join(allowed)}")
        return value

    def flag(self, name: str, default: bool = _MISSING) -> bool:
        value = self._get(name, default)
        if not isinstance(value, bool):
            raise self.fault(name, "expected true or false")
        return value

    def integer(self, name: str, default: int = _MISSING, *, least: int = 0, most: int = 2**63 - 1) -> int:
        value = self._get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise self.fault(name, f"expected a whole number from {least} to {most}")
        return value

    def number(self, name: str, *, least: float = 0.0, most: float = 2.0**53) -> float:
        """A finite number, whole or not."""
        value = self._get(name, _MISSING)
        if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= most:
            raise self.fault(name, f"expected a number from {least:g} to {most:g}")
        return float(value)

    def duration(self, name: str, default: str = _MISSING) -> float:
        """Seconds, from a number with its unit: `250ms`, `60s`, `5m`, `1h`, `7d`."""
        match = _DURATION.fullmatch(self.text(name, default))
        if not match:
            raise self.fault(name, "expected a duration such as 250ms, 60s, 5m, 1h or 7d")
        return int(match[1]) * _MILLISECONDS[match[2]] / 1000

    def size(self, name: str, default: str = _MISSING) -> int:
        """Bytes, from a number with its unit: `64KiB`, `1MiB`."""
        match = _SIZE.fullmatch(self.text(name, default))
        if not match:
            raise self.fault(name, "expected a size such as 512B, 64KiB, 1MiB or 2GiB")
        return int(match[1]) * _SIZES[match[2]]

    def base64(self, name: str, *, max_bytes: int) -> bytes:
        """Bytes from strict, padded base64 (RFC 4648 §4)."""
        text = self.text(name, max_length=(max_bytes + 2) // 3 * 4)
        try:
            raw = binascii.a2b_base64(text, strict_mode=True)
        except (binascii.Error, ValueError):
            raise self.fault(name, "expected base64 (RFC 4648 §4)") from None
        if base64.b64encode(raw).decode() != text:
            raise self.fault(name, "expected canonical base64 (RFC 4648 §3.5)")
        return raw

    def texts(self, name: str, default: tuple[str, ...] = _MISSING, *, most: int = 1024) -> tuple[str, ...]:
        value = self._get(name, default)
        if not isinstance(value, list | tuple) or len(value) > most or not all(isinstance(item, str) for item in value):
            raise self.fault(name, f"expected a list of at most {most} strings")
        return tuple(value)

    def integers(self, name: str, *, least: int, most: int, count: int) -> tuple[int, ...]:
        """At most `count` whole numbers from `least` to `most`."""
        value = self._get(name, _MISSING)
        if not isinstance(value, list | tuple) or len(value) > count:
            raise self.fault(name, f"expected a list of at most {count} whole numbers")
        return tuple(
            Fields({name: item}, self.path, self.reason).integer(name, least=least, most=most) for item in value
        )

    def each(
        self, name: str, read: Callable[[Fields], T], *, most: int = 1024, optional: bool = False
    ) -> tuple[T, ...]:
        """`read` applied to each object of the list `name`."""
        value = self._get(name, () if optional else _MISSING)
        if not isinstance(value, list | tuple) or len(value) > most:
            raise self.fault(name, f"expected a list of at most {most} objects")
        below = [
            Fields(item, f"{self._at(name)}[{i}]", self.reason, unknown=self._unknown) for i, item in enumerate(value)
        ]
        return tuple(read(item) for item in below)

    def section(self, name: str, *, optional: bool = False) -> Fields:
        """The object `name` below this one; an empty one when it is missing and `optional`."""
        return Fields(self._get(name, {} if optional else _MISSING), self._at(name), self.reason, unknown=self._unknown)

    def mapping(self, name: str, default: Mapping[str, str] = _MISSING, *, most: int = 256) -> dict[str, str]:
        """An object whose values are all strings."""
        value = self._get(name, default)
        if not isinstance(value, Mapping) or len(value) > most:
            raise self.fault(name, f"expected an object of at most {most} strings")
        if not all(isinstance(k, str) and isinstance(v, str) for k, v in value.items()):
            raise self.fault(name, "expected strings as keys and values")
        return dict(value)

    def value(self, name: str) -> Any:
        """Whatever stands there, for who compares it and does not read it."""
        return self._get(name, _MISSING)

    def document(self, name: str) -> Mapping[str, Any]:
        """An object of any values, for who keeps it and does not read it."""
        value = self._get(name, _MISSING)
        if not isinstance(value, Mapping):
            raise self.fault(name, "expected an object")
        return value

    def finish(self) -> None:
        """Refuse every field that was not asked for."""
        for name in self._value:
            if name not in self._asked:
                raise Fault(self._unknown, f"unknown field {str(name)[:64]!r}", field=self.path)

    def _at(self, name: str) -> str:
        return f"{self.path}.{name}" if self.path else name

    def _get(self, name: str, default: Any) -> Any:
        self._asked.add(name)
        value = self._value.get(name, default)
        if value is _MISSING:
            raise self.fault(name, "missing")
        return value


def strict_json(raw: bytes, path: str, reason: Reason) -> object:
    """The JSON value (RFC 8259) in `raw`, refusing what parsers disagree on: duplicate keys, NaN, infinities and
    numbers that become one, lone surrogates, bad UTF-8."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) != len(items):
            raise Fault(reason, "a key stands twice in one object", field=path)
        return found

    def constant(name: str) -> float:
        raise Fault(reason, f"{name} is not JSON", field=path)

    def number(text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            raise Fault(reason, "a number is out of range", field=path)
        return value

    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=pairs, parse_constant=constant, parse_float=number)
        if _SURROGATE.search(raw):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise Fault(reason, "not JSON in UTF-8", field=path) from error
    return value
