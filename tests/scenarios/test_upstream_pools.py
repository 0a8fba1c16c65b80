"""A pool of real servers behind a whole system: one is down, and operators are told."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import jwt
import pytest

from deploy.demo.free_ports import free_ports
from tests.support.certificates import SmallAuthority
from tests.support.peers import Nginx
from tests.support.processes import listens, running
from tests.support.system import System

POOL = """upstreams:
  - name: pooled
    addresses: [{up}, {down}]
    outlier: {{consecutive_failures: 2, ejection: 1h, share: 50}}
    identity: [sallyport, assertion]
"""
ROUTE = "\n  - {name: pooled, prefix: /pooled, upstreams: pooled, kinds: [operator]}\n"
GRANT = "\n  - {id: p1, role: fleet-operator, route: pooled, methods: [GET], paths: [/**], expires: 2027-12-31}\n"


@pytest.fixture(scope="module")
def pooled(system: System, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The addresses of the one that is up and the one that is down."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        down = f"127.0.0.1:{taken.getsockname()[1]}"
    with Nginx(tmp_path_factory.mktemp("pool") / "nginx").running() as nginx:
        (nginx.root / "pooled").mkdir()
        (nginx.root / "pooled" / "x").write_text("up")
        up = nginx.url.removeprefix("http://")
        routes: Path = system.workspace / "routes.yaml"
        system.add_policy(ROUTE, GRANT)
        routes.write_text(POOL.format(up=up, down=down) + routes.read_text("utf-8"), "utf-8")
        system.publish()
        words = [word for role in ("security", "operator", "viewer", "fleet-operator") for word in ("--role", role)]
        system.operate("inventory", "update", "admin", "--kind", "operator", *words)
        yield up, down


def test_what_is_down_is_gone_round_and_told(system: System, pooled: tuple[str, str]) -> None:
    up, down = pooled
    for _ in range(24):
        with system.connect_operator() as client:
            assert client.get("/pooled/x").status == 200
    (pool,) = [each for each in system.operate("upstream", "list", "--json").json["items"] if each["pool"] == "pooled"]
    addresses = {each["address"]: each for each in pool["addresses"]}
    assert set(addresses) == {up, down}
    assert set(addresses[up]["states"]) == {"in_service"}
    told = system.operate("upstream", "list").out
    assert up in told
    assert down in told
    if pool["dial_failures"] >= 2 * len(addresses[down]["states"]):
        assert "failures in a row" in told


def test_upstreams_learn_the_key_of_assertions(system: System, pooled: tuple[str, str]) -> None:
    (key,) = system.operate("upstream", "keys").json["keys"]
    assert jwt.PyJWK(key).key_id == key["kid"]
    assert "d" not in key
    status, page = system.page("/metrics")
    assert status == 200
    assert 'sallyport_upstream_addresses{pool="pooled",state="in_service"}' in page


PROVEN = """upstreams:
  - name: proven
    addresses: [localhost:{port}]
    tls: {{ca_file: {ca}, client_certificate: true}}
"""
NGINX = """
daemon off; master_process off; pid {folder}/proven.pid; error_log stderr crit;
events {{ worker_connections 64; }}
http {{
  access_log off;
  client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  server {{
    listen 127.0.0.1:{port} ssl;
    ssl_certificate {pair.certificate}; ssl_certificate_key {pair.key}; ssl_protocols TLSv1.3;
    ssl_client_certificate {root}; ssl_verify_client on; ssl_verify_depth 3;
    location / {{ return 200 $ssl_client_verify; }}
  }}
}}
"""


def test_a_gateway_beside_its_authority_proves_itself(system: System, tmp_path: Path) -> None:
    upstream, (port,) = SmallAuthority(tmp_path, "upstream"), free_ports(1)
    text = NGINX.format(folder=tmp_path, port=port, pair=upstream.server(), root=system.authority / "root.pem")
    (tmp_path / "proven.conf").write_text(text)
    nginx = [shutil.which("nginx") or "/usr/sbin/nginx", "-p", str(tmp_path), "-c", str(tmp_path / "proven.conf")]
    routes = system.workspace / "routes.yaml"
    with running(nginx, tmp_path / "nginx.log") as process:
        process.until(lambda: listens(port), "nginx listens")
        before = routes.read_text("utf-8")
        pool = PROVEN.format(port=port, ca=upstream.root)
        merged = before.replace("upstreams:\n", pool) if before.startswith("upstreams:\n") else pool + before
        routes.write_text(merged, "utf-8")
        system.add_policy(ROUTE.replace("pooled", "proven"), GRANT.replace("pooled", "proven").replace("p1", "p2"))
        system.publish()
        words = [word for role in ("security", "operator", "viewer", "fleet-operator") for word in ("--role", role)]
        system.operate("inventory", "update", "admin", "--kind", "operator", *words)
        with system.connect_operator() as client:
            answered = client.get("/proven/x")
            assert (answered.status, answered.body) == (200, b"SUCCESS")
