"""The loopback pages."""

from __future__ import annotations

import aiohttp
import pytest
from aiohttp.test_utils import TestServer
from prometheus_client import CollectorRegistry, Counter

from foundation.faults import Fault
from foundation.fields import Fields
from foundation.reasons import Reason
from gateway.health import HealthSettings, health_app


async def test_ready_only_when_every_part_is() -> None:
    registry, waiting = CollectorRegistry(), {"policy": "no revision is loaded", "feed": ""}
    Counter("things", "things", registry=registry).inc()

    async def gather() -> CollectorRegistry:
        return registry

    async def notes() -> dict[str, str]:
        return {"worker-1": "look at this"}

    readiness = {part: (lambda part=part: waiting[part]) for part in waiting}  # type: ignore[misc]
    app = health_app(gather, readiness, notes)
    async with TestServer(app) as server, aiohttp.ClientSession(server.make_url("/")) as client:
        async with client.get("/healthz") as answer:
            assert answer.status == 200
        async with client.get("/readyz") as answer:
            assert (answer.status, await answer.json()) == (
                503,
                {"ready": False, "waiting": {"policy": "no revision is loaded"}, "notes": {"worker-1": "look at this"}},
            )
        waiting["policy"] = ""
        async with client.get("/readyz") as answer:
            assert answer.status == 200
        async with client.get("/metrics") as answer:
            assert "things_total 1.0" in await answer.text()
        accept = {"Accept": "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"}
        async with client.get("/metrics", headers=accept) as answer:
            assert answer.content_type == "application/openmetrics-text"
            assert (await answer.text()).endswith("# EOF\n")


def test_other_addresses_are_refused() -> None:
    with pytest.raises(Fault):
        HealthSettings.parse(Fields({"host": "0.0.0.0"}, "health", Reason.SETTING_INVALID))  # noqa: S104  # refused
