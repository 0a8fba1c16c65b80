"""Caddy: a peer that forwards without deciding. It is built once, from its own source, into the virtual environment."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.processes import BIN, ENVIRONMENT, Subject, go, listens, running, wait_until
from deploy.demo.free_ports import free_ports

NAME = "Caddy, mTLS, no decisions"
VERSION = "v2.11.9"
_MODULE = "github.com/caddyserver/caddy/v2"


def installed() -> Path:
    """The binary, built when it is not there: some minutes, once."""
    binary = BIN / "caddy"
    if not binary.exists() or f"{_MODULE}\t{VERSION}\t" not in _output([go(), "version", "-m", str(binary)]):
        print(f"building Caddy {VERSION}: some minutes, once", file=sys.stderr)
        environment = {**ENVIRONMENT, "GOBIN": str(BIN), "CGO_ENABLED": "0"}
        subprocess.run([go(), "install", f"{_MODULE}/cmd/caddy@{VERSION}"], env=environment, check=True)
    return binary


@contextmanager
def proxy(folder: Path, upstream: int, pair: tuple[Path, Path], root: Path) -> Iterator[Subject]:
    """Caddy before `upstream`: it asks for a client certificate, and decides nothing. It uses every processor."""
    folder.mkdir()
    port, file, log = free_ports(1)[0], folder / "caddy.json", folder / "caddy.log"
    file.write_text(json.dumps(_configuration(port, upstream, pair, root)))
    with running([installed(), "run", "--config", file], log) as process:
        wait_until(listens(port), process, log)
        yield Subject(NAME, port, (process.pid,))


def _configuration(port: int, upstream: int, pair: tuple[Path, Path], root: Path) -> dict[str, Any]:
    authentication = {
        "mode": "require_and_verify",
        "ca": {"provider": "file", "pem_files": [str(root)]},
    }
    server = {
        "listen": [f"127.0.0.1:{port}"],
        "protocols": ["h1"],
        "automatic_https": {"disable": True},
        "tls_connection_policies": [{"protocol_min": "tls1.3", "client_authentication": authentication}],
        "routes": [{"handle": [_reverse_proxy(upstream)]}],
    }
    loaded = [{"certificate": str(pair[0]), "key": str(pair[1])}]
    tls = {"certificates": {"load_files": loaded}, "session_tickets": {"disabled": True}}
    return {
        "admin": {"disabled": True},
        "logging": {"logs": {"default": {"level": "WARN"}}},
        "apps": {"http": {"servers": {"gateway": server}}, "tls": tls},
    }


def _reverse_proxy(upstream: int) -> dict[str, Any]:
    transport = {"protocol": "http", "versions": ["1.1"], "keep_alive": {"max_idle_conns_per_host": 256}}
    return {
        "handler": "reverse_proxy",
        "transport": transport,
        "upstreams": [{"dial": f"127.0.0.1:{upstream}"}],
    }


def _output(words: list[str]) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout
