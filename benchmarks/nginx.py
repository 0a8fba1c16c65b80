"""nginx: the upstream of every benchmark of forwarding, and a peer that forwards without deciding."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.processes import Subject, listens, running, wait_until
from deploy.demo.free_ports import free_ports

NAME = "nginx, mTLS, no decisions"
ANSWER = "all is well"
_FRAME = """\
daemon off;
worker_processes {workers};
worker_rlimit_nofile 65536;
pid {folder}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 30000; }}
http {{
    access_log off;
    keepalive_requests 100000000;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
{content}
}}
"""
_STATIC = """\
    server {{
        listen 127.0.0.1:{port};
        default_type text/plain;
        location / {{ return 200 "{answer}"; }}
    }}"""
_PROXY = """\
    upstream behind {{ server 127.0.0.1:{upstream}; keepalive 128; keepalive_requests 100000000; }}
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_certificate {certificate};
        ssl_certificate_key {key};
        ssl_client_certificate {root};
        ssl_verify_client on;
        ssl_verify_depth 2;
        ssl_protocols TLSv1.3;
        ssl_session_tickets off;
        location / {{
            proxy_pass http://behind;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $host;
            proxy_set_header X-Client $ssl_client_s_dn;
        }}
    }}"""


@contextmanager
def static(folder: Path) -> Iterator[Subject]:
    """A server with one small answer to everything."""
    port = free_ports(1)[0]
    with _nginx("upstream", folder, port, _STATIC.format(port=port, answer=ANSWER)) as subject:
        yield subject


@contextmanager
def proxy(folder: Path, upstream: int, pair: tuple[Path, Path], root: Path) -> Iterator[Subject]:
    """A proxy to `upstream` that asks for a client certificate, and decides nothing."""
    port = free_ports(1)[0]
    content = _PROXY.format(port=port, upstream=upstream, certificate=pair[0], key=pair[1], root=root)
    with _nginx(NAME, folder, port, content) as subject:
        yield subject


@contextmanager
def _nginx(name: str, folder: Path, port: int, content: str) -> Iterator[Subject]:
    folder.mkdir()
    configuration, log = folder / "nginx.conf", folder / "nginx.log"
    configuration.write_text(_FRAME.format(folder=folder, content=content, workers=os.cpu_count()))
    binary = shutil.which("nginx") or "/usr/sbin/nginx"
    with running([binary, "-e", "stderr", "-c", configuration], log) as process:
        wait_until(listens(port), process, log)
        yield Subject(name, port, (process.pid,))
