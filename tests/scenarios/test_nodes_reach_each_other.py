"""Nodes reach each other only by routes that the gateway brokers: a whole system, agents as processes, keys in TPMs."""

from __future__ import annotations

import http.client
import os
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from deploy.demo.emulated_tpm import manufacture
from deploy.demo.tpm_maker import TpmMaker
from tests.support.processes import wait_until
from tests.support.running_agent import EchoService, RunningAgent, exchange, is_cut, log_of
from tests.support.system import MakeSystem, System

ROUTES = """
  - {name: echo, type: stream, service: echo, kinds: [node], class: tolerant}
  - {name: echo-udp, type: stream, service: echo-udp, protocol: udp, kinds: [node], class: tolerant}
  - {name: page, type: stream, service: page, protocol: http, kinds: [node], class: tolerant}
  - {name: closed, type: stream, service: echo, kinds: [node], class: tolerant}
"""
GRANTS = """
  - {id: echo, role: caller, route: echo, expires: 2027-12-31}
  - {id: echo-udp, role: caller, route: echo-udp, expires: 2027-12-31}
  - {id: page, role: caller, route: page, methods: [GET], paths: [/hello], expires: 2027-12-31}
"""


@dataclass
class Pair:
    """Two nodes, the first of which calls the second."""

    system: System
    caller: RunningAgent
    server: RunningAgent
    service: EchoService


@pytest.fixture(scope="module")
def pair(make_system: MakeSystem, tmp_path_factory: pytest.TempPathFactory, tpm_maker: TpmMaker) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("pair")
    system = make_system("brokered")
    with system.config.open("a") as settings:
        settings.write(f'\n[gateway.broker]\nauthority = "127.0.0.1:{system.ports["api"]}"\n')
    with (
        manufacture(folder / "tpm-a", tpm_maker) as tpm_a,
        manufacture(folder / "tpm-b", tpm_maker) as tpm_b,
        EchoService().running() as service,
        system.running(),
    ):
        system.add_policy(ROUTES, GRANTS, "  caller: Calls the others\n")
        system.publish()
        a, b = system.add_node("a", tpm_a, role="caller"), system.add_node("b", tpm_b)
        a.enrol()
        b.enrol()
        offers = {"echo": service.tcp, "echo-udp": service.udp, "page": service.tcp}
        server = RunningAgent(b, offers=offers)
        ports = tuple((route, "b", protocol) for route, protocol in
                      (("echo", "tcp"), ("echo-udp", "udp"), ("page", "http"), ("closed", "tcp")))  # fmt: skip
        caller = RunningAgent(a, ports=ports, through_tunnels=True)
        with server.running(), caller.running():
            yield Pair(system, caller, server, service)


def test_a_granted_route_carries_bytes_both_ways(pair: Pair) -> None:
    with pair.caller.connect("echo", "b") as connection:
        data = b"0123456789abcdef" * 200_000
        assert exchange(connection, data) == data


def test_each_side_may_end_for_itself(pair: Pair) -> None:
    with pair.caller.connect("echo", "b") as connection:
        connection.sendall(b"last words")
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(100) == b"last words"
        assert connection.recv(100) == b""


def test_datagrams_pass(pair: Pair) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as program:
        program.settimeout(1.0)
        program.connect(("127.0.0.1", pair.caller.ports["echo-udp", "b"]))

        def answered() -> bool:
            program.send(b"ping")  # the first may be lost while the stream is opened
            try:
                return program.recv(100) == b"ping"
            except TimeoutError:
                return False

        wait_until(answered, "a datagram to come back")


def test_a_route_without_a_grant_reaches_nobody(pair: Pair) -> None:
    accepted = pair.service.accepted
    with pair.caller.connect("closed", "b") as connection:
        connection.sendall(b"anybody?")
        assert is_cut(connection)
    assert pair.service.accepted == accepted
    assert "no_grant" in log_of(pair.caller)
    denied = pair.system.operate("access", "why", "a", "closed")
    assert "no_grant" in denied.out or "no grant" in denied.out


def test_each_request_of_http_is_decided(pair: Pair) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", pair.caller.ports["page", "b"], timeout=30)
    connection.request("GET", "/secret")
    refused = connection.getresponse()
    assert (refused.status, b"path_not_granted" in refused.read()) == (403, True)
    connection.close()


def test_a_grant_that_is_taken_back_cuts_what_is_open(pair: Pair) -> None:
    system = pair.system
    grants = system.workspace / "grants.yaml"
    before = grants.read_text()
    with pair.caller.connect("echo", "b") as connection:
        assert exchange(connection, b"still") == b"still"
        grants.write_text(before.replace("  - {id: echo, role: caller, route: echo, expires: 2027-12-31}\n", ""))
        system.publish()
        assert is_cut(connection)
    grants.write_text(before)
    system.publish()
    with pair.caller.connect("echo", "b") as connection:
        assert exchange(connection, b"again") == b"again"


def test_a_reload_loses_no_stream(pair: Pair) -> None:
    """Workers are replaced while streams are open and others are asked for."""
    system, before = pair.system, pair.system.workers
    with pair.caller.connect("echo", "b") as lasting:
        assert exchange(lasting, b"before") == b"before"
        system.edit('authority = "', 'answer = "11s"\nauthority = "')
        assert system.process is not None
        system.process.signal(signal.SIGHUP)
        asked = 0
        while not (system.workers - before and asked > 20):
            with pair.caller.connect("echo", "b") as connection:
                assert exchange(connection, b"meanwhile") == b"meanwhile", log_of(pair.caller)[-2000:]
            asked += 1
        assert exchange(lasting, b"after") == b"after"
    wait_until(lambda: pair.caller.is_up and pair.server.is_up, "tunnels to the new workers")


def test_a_killed_worker_loses_only_its_streams_and_tunnels_come_back(pair: Pair) -> None:
    for worker in sorted(pair.system.workers):
        os.kill(worker, signal.SIGKILL)
    wait_until(lambda: len(pair.system.workers) >= 1, "workers to come back")
    wait_until(lambda: pair.caller.is_up and pair.server.is_up, "tunnels to come back")

    def works() -> bool:
        try:
            with pair.caller.connect("echo", "b") as connection:
                return exchange(connection, b"back") == b"back"
        except OSError:
            return False

    wait_until(works, "streams to come back")


def test_a_killed_agent_comes_back(pair: Pair) -> None:
    pair.server.kill()
    pair.server.start()
    with pair.caller.connect("echo", "b") as connection:
        assert exchange(connection, b"anew") == b"anew"


def test_a_revoked_target_is_cut_and_does_not_come_back(pair: Pair) -> None:
    """The last one: what is revoked stays so."""
    with pair.caller.connect("echo", "b") as connection:
        assert exchange(connection, b"open") == b"open"
        pair.system.operate("inventory", "revoke", "b", "--reason", "key_compromise")
        assert is_cut(connection)
    wait_until(lambda: not pair.server.is_up, "the revoked node's tunnel to end")
    with pair.caller.connect("echo", "b") as connection:
        connection.settimeout(60.0)
        assert is_cut(connection)
