"""How many of something there may be at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Quota:
    """`taken` of `most` are in use."""

    def __init__(self, most: int) -> None:
        self.taken = 0
        self._most = most
        self._room = asyncio.Event()
        self._room.set()

    @property
    def has_room(self) -> bool:
        return self.taken < self._most

    def take(self) -> Callable[[], None]:
        """One more is in use, until what is returned is called. Ask `has_room` before."""
        self.taken += 1
        if not self.has_room:
            self._room.clear()
        given_back = False

        def give_back() -> None:
            nonlocal given_back
            if not given_back:
                given_back = True
                self.taken -= 1
                self._room.set()

        return give_back

    async def wait_for_room(self) -> None:
        await self._room.wait()
