"""The revisions that were enforced here, kept so that a decision can be explained by the one that made it.

Laws held here:
- a bundle from the shelf is loaded only when its signature verifies; its number need not be above the floor, for it
  decides nothing;
- the shelf is bounded: the `KEPT` newest revisions, of which `LOADED` are ready;
- what cannot be kept hinders nothing: then an explanation says that another revision gives it.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

from foundation.faults import Fault
from foundation.files import SECRET_MODE, make_private_folder, write_atomic
from foundation.identity import PolicyPublished
from gateway.snapshot import PolicyPart
from policies.archive import MAX_ARCHIVE_BYTES
from policies.engine import PolicyEngine
from policies.lifecycle.revision import verify
from policies.loading import load_engine
from policies.settings import CacheSettings, PolicySettings
from policies.signing import VerifyingKey

KEPT = 32
LOADED = 2
_NAME = re.compile(r"([0-9]{12})-[0-9a-f]{64}\.bundle", re.ASCII)
_LOG = logging.getLogger(__name__)


class RevisionShelf:
    """Bundles in a folder of their own, by number and digest."""

    def __init__(self, folder: Path, key: Callable[[], VerifyingKey], settings: PolicySettings) -> None:
        """`key` gives the policy key that is pinned now: what another one signed explains nothing any more."""
        self._folder = folder
        self._key = key
        # It is asked why, not what: by the embedded engine, and nothing of it is remembered.
        self._settings = replace(settings, engine="wasm", cache=CacheSettings(entries=0))
        self._loaded: OrderedDict[int, PolicyEngine] = OrderedDict()
        self._loading = asyncio.Lock()

    def keeping(
        self, load: Callable[[PolicyPublished], Awaitable[PolicyPart]]
    ) -> Callable[[PolicyPublished], Awaitable[PolicyPart]]:
        """`load`, and what it loads is put on the shelf."""

        async def load_and_keep(published: PolicyPublished) -> PolicyPart:
            part = await load(published)
            try:
                await asyncio.to_thread(self._put, part.revision, part.digest, published.bundle)
            except (OSError, Fault) as error:
                _LOG.warning("revision %d is not kept for explanations: %s", part.revision, error)
            return part

        return load_and_keep

    async def engine(self, number: int) -> PolicyEngine | None:
        """The engine of this revision; None when it is kept no longer, or does not load."""
        async with self._loading:
            engine = self._loaded.get(number)
            if engine is None:
                engine = await self._load(number)
            if engine is not None:
                self._loaded[number] = engine
                self._loaded.move_to_end(number)
            while len(self._loaded) > LOADED:
                await self._loaded.popitem(last=False)[1].close()
            return engine

    async def close(self) -> None:
        async with self._loading:
            while self._loaded:
                await self._loaded.popitem()[1].close()

    async def _load(self, number: int) -> PolicyEngine | None:
        try:
            bundle = await asyncio.to_thread(self._get, number)
            if bundle is None:
                return None
            loaded = await asyncio.to_thread(verify, bundle, self._key(), number - 1)
            return await load_engine(loaded.compiled, self._settings)
        except (OSError, Fault) as error:
            _LOG.warning("revision %d cannot explain what it decided: %s", number, error)
            return None

    def _put(self, number: int, digest: str, bundle: bytes) -> None:
        make_private_folder(self._folder)
        path = self._folder / f"{number:012}-{digest}.bundle"
        if not path.exists():
            write_atomic(path, bundle, mode=SECRET_MODE)
        for old in self._names()[:-KEPT]:
            (self._folder / old).unlink(missing_ok=True)

    def _get(self, number: int) -> bytes | None:
        name = next((name for name in self._names() if name.startswith(f"{number:012}-")), None)
        if name is None:
            return None
        with (self._folder / name).open("rb") as file:
            return file.read(MAX_ARCHIVE_BYTES)

    def _names(self) -> list[str]:
        """Oldest first: they begin with the number."""
        if not self._folder.is_dir():
            return []
        return sorted(path.name for path in self._folder.iterdir() if _NAME.fullmatch(path.name))
