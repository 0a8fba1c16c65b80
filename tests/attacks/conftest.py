"""The data plane runs on uvloop, and so do the attacks on it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop

_DATA_PLANE = {"tests.support.gateway", "tests.support.brokered"}


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    names = vars(getattr(item, "module", object)).values()
    on_data_plane = any(getattr(each, "__module__", "") in _DATA_PLANE for each in names)
    return {"uvloop": uvloop.new_event_loop} if on_data_plane else {"asyncio": asyncio.new_event_loop}
