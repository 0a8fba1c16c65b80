"""The engine `opa`: a whole system whose decisions a real OPA server makes, which dies and comes back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.peers import OpaServer
from tests.support.processes import wait_until
from tests.support.system import Answered, Client, MakeSystem, MakeTpm, Node, System

ASKED = (
    ("GET", "/version"),
    ("HEAD", "/version"),
    ("GET", "/health"),
    ("GET", "/metrics"),
    ("DELETE", "/version"),
    ("POST", "/v3/kv/put"),
    ("POST", "/v3/kv/range"),
    ("POST", "/v3/auth/enable"),
    ("POST", "/v3/maintenance/snapshot"),
    ("GET", "/models/large"),
)


@pytest.fixture
def opa(tmp_path: Path) -> Iterator[OpaServer]:
    server = OpaServer(tmp_path)
    server.start()
    yield server
    server.kill()


def test_an_opa_server_decides_alike_and_without_it_nothing_is_allowed(
    system: System, make_system: MakeSystem, make_tpm: MakeTpm, opa: OpaServer
) -> None:
    embedded = system.add_node("opa-peer", make_tpm("embedded"))
    embedded.enrol()
    other = make_system("opa")
    other.edit('engine = "wasm" ', 'engine = "opa" ')
    other.config.write_text(f"{other.config.read_text()}\n[policy.opa]\nport = {opa.port}\n")
    with other.running():
        node = other.add_node("opa-peer", make_tpm("served"))
        node.enrol()
        assert _answers(node) == _answers(embedded)
        unknown = other.add_node("opa-unknown", make_tpm("unknown"), tier="1")  # like whom nobody asked
        unknown.enrol()
        with unknown.connect() as client:
            _denies_while_it_is_gone(client, opa)
        _starts_without_it(other, node, opa)


def _answers(node: Node) -> list[tuple[int, str]]:
    with node.connect() as client:
        return [_outcome(client.ask(method, path)) for method, path in ASKED]


def _outcome(answer: Answered) -> tuple[int, str]:
    """Status, and the reason of a refusal. What an upstream says is its own business."""
    refused = answer.headers["content-type"] == "application/problem+json"
    return answer.status, answer.headers.get("x-sallyport-reason", answer.reason if refused and answer.body else "")


def _denies_while_it_is_gone(client: Client, opa: OpaServer) -> None:
    opa.kill()
    denied = client.get("/version")
    assert denied.status == 503
    assert denied.reason.startswith("engine_")
    opa.start()
    wait_until(lambda: client.get("/version").status == 200, "the policy to be loaded again")


def _starts_without_it(system: System, node: Node, opa: OpaServer) -> None:
    """A gateway that starts before its OPA server denies, and serves once it is there."""
    system.stop()
    opa.kill()
    with system.unready():
        with node.connect() as client:
            assert client.get("/version").reason == "revision_missing"
        opa.start()
        wait_until(lambda: system.readiness()[0] == 200, "the policy to be loaded")
        with node.connect() as client:
            assert client.get("/version").status == 200
