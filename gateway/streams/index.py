"""Finds what has one property in common, at the cost of those that have it."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class Index(Generic[K, T]):
    """Items by a key that many may share, in the order of their coming. An empty key holds nothing."""

    __slots__ = ("_items",)

    def __init__(self) -> None:
        self._items: dict[K, dict[T, None]] = {}

    def add(self, key: K, item: T) -> None:
        items = self._items.get(key)
        if items is None:
            self._items[key] = {item: None}
        else:
            items[item] = None

    def remove(self, key: K, item: T) -> None:
        """Forget `item` under `key`. One that is not there is no error."""
        items = self._items.get(key)
        if items is None:
            return
        items.pop(item, None)
        if not items:
            del self._items[key]

    def of(self, key: K) -> Collection[T]:
        """The items under `key`. Copy them before anything is added or removed."""
        return self._items.get(key, ())

    def sizes(self) -> Iterator[tuple[K, int]]:
        """How many items each key has."""
        return ((key, len(items)) for key, items in self._items.items())
