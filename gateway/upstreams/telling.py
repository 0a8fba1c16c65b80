"""What is told of pools: by a worker to the process above it, to an operator, to a scraper."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from gateway.upstreams.endpoint import Endpoint
from gateway.upstreams.pool import LivePool

Overview = list[dict[str, Any]]
_COUNTED = ("retries", "retries_refused", "ejections", "dial_failures", "refused")
_SUMMED = ("pending", "retrying", *_COUNTED)


def overview(pools: Iterable[LivePool]) -> Overview:
    """What an operator may know of the pools: their addresses, their state and why it is so."""
    return [
        {
            "pool": pool.value.name,
            "panicking": pool.panicking,
            "lookup_failure": pool.lookup_failure.code if pool.lookup_failure else "",
            "pending": pool.pending,
            "retrying": pool.retrying,
            **pool.counted,
            "addresses": [_about(endpoint, pool.clock.monotonic()) for endpoint in pool.endpoints.values()],
        }
        for pool in sorted(pools, key=lambda each: each.value.name)
    ]


def _about(endpoint: Endpoint, now: float) -> dict[str, Any]:
    return {
        "address": str(endpoint.address),
        "name": endpoint.name,
        "state": endpoint.state,
        "why": endpoint.why,
        "back_in_seconds": round(max(0.0, endpoint.ejected_until - now), 1),
        "active": endpoint.active,
        "connections": len(endpoint.connections),
        "weight": round(endpoint.weight * endpoint.share, 2),
    }


def encode(seen: Overview) -> bytes:
    """One worker's `Upstreams.overview`, to be read by `merged`."""
    return json.dumps(seen, separators=(",", ":")).encode()


def merged(answers: Iterable[bytes]) -> Overview:
    """The pools as all workers see them: numbers add up; of an address `states` tells how many see it how, and `why`
    what the first says that does not see it in service."""
    pools: dict[str, dict[str, Any]] = {}
    for answer in answers:
        for seen in json.loads(answer):
            pool = pools.setdefault(seen["pool"], {"pool": seen["pool"], "panicking": False, "addresses": {}})
            pool["panicking"] = pool["panicking"] or seen["panicking"]
            pool["lookup_failure"] = pool.get("lookup_failure") or seen["lookup_failure"]
            for name in _SUMMED:
                pool[name] = pool.get(name, 0) + seen[name]
            for address in seen["addresses"]:
                _merge_address(pool["addresses"], address)
    return [{**pool, "addresses": list(pool["addresses"].values())} for _, pool in sorted(pools.items())]


def _merge_address(known: dict[str, dict[str, Any]], seen: Mapping[str, Any]) -> None:
    address = known.setdefault(
        seen["address"],
        {"address": seen["address"], "name": seen["name"], "states": {}, "why": "", "active": 0, "connections": 0},
    )
    address["states"][seen["state"]] = address["states"].get(seen["state"], 0) + 1
    address["why"] = address["why"] or seen["why"]
    address["back_in_seconds"] = max(address.get("back_in_seconds", 0.0), seen["back_in_seconds"])
    for name in ("active", "connections"):
        address[name] += seen[name]


class PoolMetrics:
    """Implements a collector of `prometheus_client`: pools are looked at when they are scraped, and cost nothing
    otherwise. Labels are pools' names, as policy gives them, and words of our own."""

    def __init__(self, registry: CollectorRegistry, overview: Callable[[], Overview]) -> None:
        self._overview = overview
        registry.register(self)

    def describe(self) -> Iterable[Metric]:
        """Nothing ahead: there may be no pool yet."""
        return ()

    def collect(self) -> Iterable[Metric]:
        events = CounterMetricFamily("sallyport_upstream_events", "What befell a pool", labels=("pool", "event"))
        addresses = GaugeMetricFamily(
            "sallyport_upstream_addresses", "Addresses of a pool, by state", labels=("pool", "state")
        )
        active = GaugeMetricFamily("sallyport_upstream_active", "Exchanges under way to a pool", labels=("pool",))
        for pool in self._overview():
            name, seen = pool["pool"], pool["addresses"]
            for event in _COUNTED:
                if pool[event]:
                    events.add_metric((name, event), pool[event])
            for state in sorted({each["state"] for each in seen}):
                addresses.add_metric((name, state), sum(each["state"] == state for each in seen))
            active.add_metric((name,), sum(each["active"] for each in seen))
        return (events, addresses, active)
