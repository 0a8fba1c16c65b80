"""The port of hot state. Every backend passes tests/conformance/test_hotstate.py."""

from __future__ import annotations

from typing import Protocol

MAX_KEY = 512
MAX_VALUE_BYTES = 64 * 1024


class HotState(Protocol):
    """Short-lived entries by key. `ttl` is seconds, more than 0; an entry is gone once it is over. Every call is
    atomic. Keys are at most `MAX_KEY` characters and values at most `MAX_VALUE_BYTES`: otherwise
    `Fault(MESSAGE_TOO_LARGE)`. A backend that cannot answer raises `Fault(OVERLOADED)`: absent state refuses."""

    async def put_once(self, key: str, value: bytes, ttl: float) -> bool:
        """Put `value` unless there is an entry of this key. False means there was, and it stays as it is. Raises
        `Fault(OVERLOADED)` when there is no room: nothing is ever pushed out by something new."""
        ...

    async def get(self, key: str) -> bytes | None:
        """The value, or None when there is none."""
        ...

    async def take(self, key: str) -> bytes | None:
        """The value, which is gone afterwards: of many takers at once, one gets it."""
        ...

    async def delete(self, key: str) -> None:
        """Remove the entry if there is one."""
        ...

    async def increment(self, key: str, ttl: float) -> int:
        """Count one more and return the count, which begins at 1. The first of them sets when the counter ends; later
        ones do not move that. A counter's key holds no other value. Raises `Fault(OVERLOADED)`."""
        ...

    async def close(self) -> None:
        """Release what the backend holds."""
        ...
