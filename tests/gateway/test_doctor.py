"""What the doctor asks of a gateway that runs."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from foundation.fields import Fields
from foundation.reasons import Reason
from gateway.configuration import Configuration
from gateway.doctor import Finding, _hot_state, _running
from tests.support.redis import redis_server


@contextmanager
def serving(body: bytes) -> Iterator[int]:
    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # the library's name
            assert self.path == "/readyz"
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def findings(port: int) -> list[Finding]:
    top = Fields({"health": {"port": port}}, "", Reason.SETTING_INVALID)
    return list(_running(Configuration(Path("sallyport.toml"), b"", top)))


@pytest.mark.parametrize(
    ("told", "grades"),
    [
        ({"ready": True, "waiting": {}, "notes": {}}, []),
        ({"ready": True, "waiting": {}, "notes": {"worker-1": "3 streams were cut late"}}, ["warning"]),
        ({"ready": True, "waiting": {}}, []),
    ],
)
def test_its_notes_are_findings(told: dict[str, object], grades: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # what is on loopback is asked directly
    with serving(json.dumps(told).encode()) as port:
        assert [finding.grade for finding in findings(port)] == grades


def test_what_does_not_run_or_says_something_else_is_no_finding() -> None:
    assert findings(1) == []
    with serving(b"<html>") as port:
        assert findings(port) == []


def of_hot_state(section: dict[str, object]) -> list[Finding]:
    top = Fields({"hotstate": section}, "", Reason.SETTING_INVALID)
    return list(_hot_state(Configuration(Path("sallyport.toml"), b"", top)))


def test_a_redis_server_is_asked_whether_it_keeps_what_it_is_given() -> None:
    assert of_hot_state({}) == []
    with redis_server() as server:
        section: dict[str, object] = {"redis": {"url": f"unix://{server.socket}"}}
        assert [finding.grade for finding in of_hot_state(section)] == ["good"]
        with server.raw() as raw:
            raw.config_set("maxmemory-policy", "allkeys-lru")
        [finding] = of_hot_state(section)
        assert finding.grade == "bad"
        assert "noeviction" in finding.detail
    [finding] = of_hot_state(section)
    assert (finding.check, finding.grade) == ("hot state", "bad")
    assert str(server.socket) in finding.detail
