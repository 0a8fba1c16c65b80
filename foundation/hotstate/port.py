"""The port of hot state. Every backend passes tests/conformance/test_hotstate.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from foundation.faults import Fault
from foundation.reasons import Reason

MAX_KEY = 512
MAX_VALUE_BYTES = 64 * 1024
MAX_BATCH = 256  # entries that one call reads or swaps


@dataclass(frozen=True, slots=True)
class Swap:
    """Where `key` holds `before`, let it hold `after`. None is no entry. The same value twice prolongs its life."""

    key: str
    before: bytes | None
    after: bytes | None


class HotState(Protocol):
    """Short-lived entries by key. `ttl` is seconds, more than 0; an entry is gone once it is over. Every call is
    atomic, but for the many of `get_many` and `swap`, of which each is. Keys are at most `MAX_KEY` characters and
    values at most `MAX_VALUE_BYTES`: otherwise `Fault(MESSAGE_TOO_LARGE)`. A backend that cannot answer raises
    `Fault(HOT_STATE_UNAVAILABLE)`: absent state refuses."""

    async def generation(self) -> str:
        """Names what is remembered without a break, and never comes back. With another generation, everything that was
        put before is gone, and its keys are free again. So whoever marks with `put_once` as used what is no entry here
        puts the generation into what is issued, and refuses it when, after the mark, the generation is another."""
        ...

    async def put_once(self, key: str, value: bytes, ttl: float) -> bool:
        """Put `value` unless there is an entry of this key. False means there was, and it stays as it is. Raises
        `Fault(OVERLOADED)` when there is no room: nothing is ever pushed out by something new."""
        ...

    async def get(self, key: str) -> bytes | None:
        """The value, or None when there is none."""
        ...

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """The values of `MAX_BATCH` keys at most, in their order."""
        ...

    async def swap(self, swaps: Sequence[Swap], ttl: float) -> list[bool]:
        """Do `MAX_BATCH` swaps at most, one after the other; which of them found what they expected. All that leave an
        entry let it live for `ttl` from now. Raises `Fault(OVERLOADED)` when there is no room; those before that are
        done."""
        ...

    async def take(self, key: str) -> bytes | None:
        """The value, which is gone afterwards: of many takers at once, one gets it."""
        ...

    async def delete(self, key: str) -> None:
        """Remove the entry if there is one."""
        ...

    async def close(self) -> None:
        """Release what the backend holds."""
        ...


def check_key(key: str) -> None:
    """Raises `Fault(MESSAGE_TOO_LARGE)`."""
    if len(key) > MAX_KEY:
        raise Fault(Reason.MESSAGE_TOO_LARGE, f"a key has at most {MAX_KEY} characters")


def check_value(value: bytes) -> None:
    """Raises `Fault(MESSAGE_TOO_LARGE)`."""
    if len(value) > MAX_VALUE_BYTES:
        raise Fault(Reason.MESSAGE_TOO_LARGE, f"at most {MAX_VALUE_BYTES} bytes are kept")


def check_ttl(ttl: float) -> None:
    """Raises `ValueError`."""
    if not 0 < ttl < float("inf"):
        raise ValueError("ttl is a number of seconds, more than 0")


def check_batch(batch: Sequence[object]) -> None:
    """Raises `ValueError`."""
    if len(batch) > MAX_BATCH:
        raise ValueError(f"at most {MAX_BATCH} in one call")
