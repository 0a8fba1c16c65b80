"""What stands around a Sallyport in tests: etcd, nginx, an OPA server, services. All real, all on loopback."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from deploy.demo.free_ports import free_ports
from tests.support.processes import PATIENCE, Running, answers, listens, running

_NGINX = """
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
worker_processes 1;
events {{}}
http {{
  access_log off;
  client_body_temp_path {folder}/client;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  client_max_body_size 0;
  gzip_min_length 1;
  gzip_types text/plain;
  gzip_http_version 1.0;
  gzip_proxied any;
  types {{ text/plain txt; }}
  server {{
    listen 127.0.0.1:{port};
    root {folder}/root;
    location /files/zipped/ {{ gzip on; }}
    location /files/upload/ {{ dav_methods PUT; }}
    location / {{ }}
  }}
}}
"""


class Etcd:
    """An etcd that listens on `host` and keeps its data below `folder`, started and killed at will."""

    def __init__(self, folder: Path, host: str = "127.0.0.1") -> None:
        ports = free_ports(2)
        self.url, peer = f"http://{host}:{ports[0]}", f"http://127.0.0.1:{ports[1]}"
        self._log = folder / "etcd.log"
        self._words = ["etcd", "--data-dir", str(folder / "etcd"), "--log-level", "error"]
        self._words += ["--listen-client-urls", self.url, "--advertise-client-urls", self.url]
        self._words += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
        self._words += ["--initial-cluster", f"default={peer}"]
        self._process: Running | None = None

    def start(self) -> None:
        self._process = Running(self._words, self._log)
        self._process.until(lambda: answers(f"{self.url}/health"), "etcd")

    def kill(self) -> None:
        if self._process:
            self._process.kill()
            self._process = None

    def stop(self) -> None:
        if self._process:
            self._process.terminate()
            self._process = None


@contextlib.contextmanager
def etcd(folder: Path) -> Iterator[str]:
    """The URL of an etcd that runs while the block lasts."""
    server = Etcd(folder)
    try:
        server.start()
        yield server.url
    finally:
        server.stop()


class Nginx:
    """An nginx that serves `root`, takes PUT below /files/upload/ and compresses what lies below /files/zipped/."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.root = folder / "root"
        for name in ("upload", "zipped", "held"):
            (self.root / "files" / name).mkdir(parents=True)
        (self.port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{self.port}"
        self._config = folder / "nginx.conf"
        self._config.write_text(_NGINX.format(folder=folder, port=self.port))

    @contextlib.contextmanager
    def running(self) -> Iterator[Nginx]:
        # Its workers leave root's rights behind; the folders of a test are for its owner alone.
        words = ["nginx", "-e", f"{self._config}.log", "-c", str(self._config), "-g", "user root;"]
        with running(words, Path(f"{self._config}.out")) as process:
            process.until(lambda: listens(self.port), "nginx")
            yield self


class OpaServer:
    """`opa run --server`, started and stopped at will on one port."""

    def __init__(self, folder: Path) -> None:
        (self.port,) = free_ports(1)
        self._log = folder / "opa.log"
        self._process: Running | None = None

    def start(self) -> None:
        words = ["opa", "run", "--server", "--addr", f"127.0.0.1:{self.port}", "--log-level", "error"]
        self._process = Running(words, self._log)
        self._process.until(lambda: answers(f"http://127.0.0.1:{self.port}/health"), "opa")

    def kill(self) -> None:
        if self._process:
            self._process.kill()
            self._process = None


@contextlib.contextmanager
def echo_server(folder: Path) -> Iterator[str]:
    """The URL of a service that echoes WebSocket messages."""
    (port,) = free_ports(1)
    words = [sys.executable, "-m", "tests.support.echo", str(port)]
    with running(words, folder / "echo.log") as process:
        process.until(lambda: listens(port), "the echo service")
        yield f"http://127.0.0.1:{port}"


class HeldService:
    """A service whose answer to GET /held begins at once and ends when `release` is set."""

    def __init__(self) -> None:
        self.release = threading.Event()
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Length", "8")
                self.end_headers()
                self.wfile.write(b"half")
                service.release.wait(PATIENCE)
                self.wfile.write(b"half")

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    @contextlib.contextmanager
    def running(self) -> Iterator[HeldService]:
        thread = threading.Thread(target=self._server.serve_forever)
        thread.start()
        try:
            yield self
        finally:
            self.release.set()
            self._server.shutdown()
            thread.join()
            self._server.server_close()
