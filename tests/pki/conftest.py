"""An authority of its own for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.site import Site, open_site


@pytest.fixture
async def site(tmp_path: Path, storage: str) -> AsyncIterator[Site]:
    async with open_site(tmp_path, storage) as opened:
        yield opened
