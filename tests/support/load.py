"""Clients that ask without a pause, and count what is lost."""

from __future__ import annotations

import http.client
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.support.system import Client


class Load:
    """`count` clients in threads. `answers` counts statuses; `lost` tells of every request that got no whole answer,
    and every connection that was not served."""

    def __init__(self, connect: Callable[[], Client], path: str, count: int = 3) -> None:
        self.answers: Counter[int] = Counter()
        self.lost: list[str] = []
        self._connect = connect
        self._path = path
        self._over = threading.Event()
        self._guard = threading.Lock()
        self._threads = [threading.Thread(target=self._run) for _ in range(count)]

    @contextmanager
    def running(self) -> Iterator[Load]:
        for thread in self._threads:
            thread.start()
        try:
            yield self
        finally:
            self._over.set()
            for thread in self._threads:
                thread.join()

    def _run(self) -> None:
        while not self._over.is_set():
            try:
                with self._connect() as client:
                    self._ask(client)
            except (OSError, http.client.HTTPException) as error:
                with self._guard:
                    self.lost.append(repr(error))

    def _ask(self, client: Client) -> None:
        """Until the server says that this connection is over."""
        while not self._over.is_set():
            answered = client.get(self._path)
            with self._guard:
                self.answers[answered.status] += 1
            if answered.headers.get("connection") == "close":
                return
