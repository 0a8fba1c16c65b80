"""What the service manager is told."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from foundation import notify


@pytest.mark.parametrize("abstract", [True, False])
def test_states_reach_the_socket_that_the_environment_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool
) -> None:
    name = f"@sallyport-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(name.replace("@", "\0", 1) if abstract else name)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        notify.reloading()
        notify.ready()
        notify.stopping()
        reloading, *others = [manager.recv(200) for _ in range(3)]
    assert reloading.startswith(b"RELOADING=1\nMONOTONIC_USEC=")
    assert others == [b"READY=1", b"STOPPING=1"]


@pytest.mark.parametrize("address", ["", "vsock:2:1", "/nowhere/at/all"])
def test_where_nobody_listens_nobody_is_told(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    notify.ready()


def test_a_manager_that_does_not_read_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        for _ in range(10_000):  # more than a queue of datagrams holds
            notify.alive()
        assert manager.recv(200) == b"WATCHDOG=1"
