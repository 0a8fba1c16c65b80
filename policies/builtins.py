"""The builtins that the host gives to Wasm, each with OPA's answer. Arguments and results are JSON values; a set
arrives as an array."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


class BuiltinFault(Exception):
    """An evaluation that cannot go on."""


BUILTINS: Mapping[str, Callable[..., Any]] = {}
