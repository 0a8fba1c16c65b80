"""The builtins that the host gives to Wasm, each with OPA's answer.

Arguments and results are JSON values; a set arrives as an array. Where OPA would call an expression undefined because
an argument is wrong, these halt the evaluation instead: behind a `not`, undefined would turn into a permit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

_VERB = re.compile(r"%(.?)", re.DOTALL)
_MAX_PLAIN = 1e6  # from there on, and below _MIN_PLAIN, Go writes an exponent
_MIN_PLAIN = 1e-4


class BuiltinFault(Exception):
    """An evaluation that cannot go on."""


def sprintf(form: object, values: object) -> str:
    """Go's `%v`, `%s`, `%d` and `%%` without flags, over strings, numbers, booleans and null. Where Go would write what
    is wrong into the text, this halts."""
    if not isinstance(form, str) or not isinstance(values, list):
        raise BuiltinFault("sprintf: a format and an array of values are expected")
    verbs = [match[1] for match in _VERB.finditer(form) if match[1] != "%"]
    if len(verbs) != len(values):
        raise BuiltinFault("sprintf: as many verbs as values are expected")
    texts = map(_formatted, verbs, values)
    return _VERB.sub(lambda match: "%" if match[1] == "%" else next(texts), form)


def _formatted(verb: str, value: object) -> str:
    if isinstance(value, bool) and verb in {"v", "s"}:
        return "true" if value else "false"
    if value is None and verb in {"v", "s"}:
        return "null"
    if isinstance(value, str) and verb in {"v", "s"}:
        return value
    if isinstance(value, int) and not isinstance(value, bool) and verb in {"v", "d"}:
        return str(value)
    if isinstance(value, float) and verb == "v" and (value == 0 or _MIN_PLAIN <= abs(value) < _MAX_PLAIN):
        return repr(value).removesuffix(".0")
    raise BuiltinFault(f"sprintf: %{verb} cannot take this value")


def any_prefix_match(search: object, base: object) -> bool:
    return any(text.startswith(tuple(_texts(base))) for text in _texts(search))


def any_suffix_match(search: object, base: object) -> bool:
    return any(text.endswith(tuple(_texts(base))) for text in _texts(search))


def _texts(value: object) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise BuiltinFault("a string, or an array or set of strings is expected")
    return texts


BUILTINS: Mapping[str, Callable[..., Any]] = {
    "sprintf": sprintf,
    "strings.any_prefix_match": any_prefix_match,
    "strings.any_suffix_match": any_suffix_match,
}
