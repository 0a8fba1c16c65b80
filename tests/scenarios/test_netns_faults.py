"""The means of the scenarios in network namespaces are what they say they are: a fault that does nothing, or a capture
that sees nothing, would let every proof pass."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.netns.capture import Flow, capturing
from tests.support.netns.faults import cut, delayed, lossy, narrow, unplugged
from tests.support.netns.namespaces import Namespace, end_inside, own_path
from tests.support.netns.network import Host, Network, network
from tests.support.processes import ROOT, wait_until

PORT = 7000


@pytest.fixture(scope="module")
def net() -> Iterator[Network]:
    with network("node-a", "node-b", "node-c") as made:
        yield made


@pytest.fixture(scope="module", autouse=True)
def _echo(net: Network) -> Iterator[None]:
    """Host b answers every datagram and every connection, on both families."""
    with net["node-b"].inside():
        datagrams = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        datagrams.bind(("::", PORT))
        listening = socket.create_server(("::", PORT), family=socket.AF_INET6, dualstack_ipv6=True)

    def answer() -> None:
        with contextlib.suppress(OSError):
            while (came := datagrams.recvfrom(65_536))[0] != b"end":
                datagrams.sendto(*came)

    thread = threading.Thread(target=answer)
    thread.start()
    yield
    with net["node-b"].inside(), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as ending:
        ending.sendto(b"end", ("::1", PORT))
    thread.join()
    datagrams.close()
    listening.close()


def asking(host: Host, address: str) -> socket.socket:
    """A datagram socket of `host` to host b."""
    with host.inside():
        found = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    found.connect((address, PORT))
    return found


def answered(host: Host, address: str, count: int = 1, patience: float = 0.3) -> int:
    """How many of `count` datagrams are answered."""
    with asking(host, address) as asked:
        asked.settimeout(patience)
        for number in range(count):
            with contextlib.suppress(OSError):
                asked.send(b"%d" % number)
        got = 0
        with contextlib.suppress(OSError):
            while got < count:
                asked.recv(100)
                got += 1
    return got


def reaches(host: Host, target: Host) -> list[bool]:
    return [answered(host, address) == 1 for address in target.addresses]


def test_without_root_it_fails_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(AssertionError, match="need root"), network("node-a"):
        pass


def test_nothing_of_the_machines_own_network_is_touched() -> None:
    def own() -> list[str]:
        return [subprocess.run(words, capture_output=True, text=True, check=True).stdout for words in shown]

    shown = (["ip", "-o", "link"], ["ip", "-o", "addr"], ["ip", "route"], ["ip", "netns"], ["nft", "list", "ruleset"])
    before, here = own(), os.stat(own_path()).st_ino
    with network("node-a", "node-b") as made:
        assert own() == before
        assert made["node-a"].run("ip", "-o", "link") != before[0]
        with cut(made, made["node-a"]), made["node-a"].inside():
            assert os.stat(own_path()).st_ino != here
        assert os.stat(own_path()).st_ino == here
    assert own() == before


def test_what_a_killed_run_left_inside_ends(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time\n"
        "from tests.support.netns.network import network\n"
        "with network('node-a') as made, made['node-a'].inside():\n"
        "    print(subprocess.Popen(['sleep', '1000'], start_new_session=True).pid, flush=True)\n"
        "    time.sleep(1000)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        left = int(run.stdout.readline())
        run.send_signal(signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{left}/ns/net").exists() or not is_alive(left), "the keeper to end it")


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_closing_ends_what_is_inside() -> None:
    made = Namespace("alone")
    with made.inside():
        process = subprocess.Popen(["sleep", "1000"])
    reaper = threading.Thread(target=process.wait)
    reaper.start()
    end_inside([made.inode])
    reaper.join()
    assert process.returncode == -signal.SIGKILL
    made.close()


def test_a_cut_is_complete_and_ends(net: Network) -> None:
    a, b, c = net["node-a"], net["node-b"], net["node-c"]
    assert reaches(a, b) == [True, True]
    with cut(net, a):
        assert reaches(a, b) == [False, False]
        assert reaches(c, b) == [True, True]
    with cut(net, a, b):
        assert reaches(a, b) == [False, False]
        assert reaches(c, b) == [True, True]
        with cut(net, c):
            assert reaches(c, b) == [False, False]
        assert reaches(c, b) == [True, True]
    assert reaches(a, b) == [True, True]


def test_a_link_that_is_pulled_comes_back(net: Network) -> None:
    with unplugged(net, net["node-a"]):
        assert reaches(net["node-a"], net["node-b"]) == [False, False]
    wait_until(lambda: reaches(net["node-a"], net["node-b"]) == [True, True], "the link")


def test_loss_loses_some(net: Network) -> None:
    with lossy(net, net["node-a"], 30):
        got = [answered(net["node-a"], address, 100) for address in net["node-b"].addresses]
    assert all(20 < count < 80 for count in got), f"100 asked with 30 % lost each way: about 49 expected, {got} came"
    assert answered(net["node-a"], net["node-b"].ipv4, 100) == 100


def test_a_delay_delays_and_keeps_everything(net: Network, tmp_path: Path) -> None:
    seconds = 0.15
    for address in net["node-b"].addresses:
        assert answered(net["node-a"], address) == 1  # neighbours are known from here on
    with delayed(net, net["node-a"], seconds, tmp_path):
        for address in net["node-b"].addresses:
            begun = time.monotonic()
            assert answered(net["node-a"], address, 50, patience=10) == 50
            assert time.monotonic() - begun >= 2 * seconds
        assert reaches(net["node-c"], net["node-b"]) == [True, True]
    assert reaches(net["node-a"], net["node-b"]) == [True, True]


def test_a_narrow_link_carries_no_more_than_its_rate(net: Network) -> None:
    rate, size, count = 256_000, 1000, 40
    with narrow(net, net["node-a"], "256kbit"), asking(net["node-a"], net["node-b"].ipv4) as asked:
        asked.settimeout(0.5)
        begun, got = time.monotonic(), 0
        with contextlib.suppress(TimeoutError):
            for _ in range(count):
                asked.send(bytes(size))
            while asked.recv(size):
                got, ended = got + 1, time.monotonic()
    assert got < count or (ended - begun) * rate / 8 >= count * size - 2 * 16_384
    assert got * size <= 2 * 16_384 + (ended - begun) * rate / 8 + size


def test_a_capture_sees_whatever_passes(net: Network) -> None:
    a, b = net["node-a"], net["node-b"]
    with capturing(a) as capture:
        for address in b.addresses:
            assert answered(a, address) == 1
            with a.inside():
                socket.create_connection((address, PORT), timeout=5).close()
        with cut(net, a):
            answered(a, b.ipv4, 3)
    seen = {(flow.outgoing, flow.protocol, flow.source, flow.target) for flow in capture.packets}
    for mine, theirs in ((a.ipv4, b.ipv4), (a.ipv6, b.ipv6)):
        for protocol in ("udp", "tcp"):
            assert (True, protocol, mine, theirs) in seen
            assert (False, protocol, theirs, mine) in seen
    outgoing = [flow for flow in capture.packets if flow.outgoing and not flow.neighbourly]
    assert {flow.target_port for flow in outgoing} == {PORT}
    sent = sum(n for flow, n in capture.packets.items() if flow.outgoing and flow.protocol == "udp")
    assert sent == 5, "what is lost behind the link has left the host all the same"
    assert Flow(True, "udp", a.ipv4, 0, b.ipv4, PORT) not in capture.packets, "flows have their ports"
