"""HAProxy: in front of a gateway as a sender of PROXY v2, behind it as a receiver."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from deploy.demo.free_ports import free_ports
from policies.upstreams import Address
from tests.support.processes import listens, running

_COMMON = """
global
    maxconn 64
defaults
    timeout client 20s
    timeout server 20s
    timeout connect 5s
    timeout http-request 20s
"""


@contextlib.contextmanager
def sender(folder: Path, gateway: tuple[str, int]) -> Iterator[Address]:
    """Passes connections on to a gateway as they are, each with its header."""
    (port,) = free_ports(1)
    parts = f"""
listen front
    mode tcp
    bind 127.0.0.1:{port}
    server gateway {gateway[0]}:{gateway[1]} send-proxy-v2
"""
    with _haproxy(folder, parts, port):
        yield Address("127.0.0.1", port)


@contextlib.contextmanager
def receiver(folder: Path, tls: str = "") -> Iterator[Address]:
    """Demands a header, and answers each request with whom it names and who proved a certificate. `tls` are words for
    its `bind`."""
    (port,) = free_ports(1)
    who = "%[src] %[src_port] %[fc_rcvd_proxy]" + (" %[ssl_c_s_dn(cn)]" if tls else "")
    parts = f"""
frontend front
    mode http
    bind 127.0.0.1:{port} accept-proxy {tls}
    http-request return status 200 content-type text/plain lf-string "{who}"
"""
    with _haproxy(folder, parts, port):
        yield Address("127.0.0.1", port)


@contextlib.contextmanager
def _haproxy(folder: Path, parts: str, port: int) -> Iterator[None]:
    (folder / "haproxy.cfg").write_text(_COMMON + parts)
    command = [shutil.which("haproxy") or "/usr/sbin/haproxy", "-db", "-q", "-f", str(folder / "haproxy.cfg")]
    with running(command, folder / "haproxy.log") as process:
        process.until(lambda: listens(port), "HAProxy listens")
        yield
