"""The node's TLS key stays in its TPM: each handshake is a signature that the TPM itself logged, and the node's disk
alone gets nobody anywhere."""

from __future__ import annotations

import shutil

import pytest

from deploy.demo.emulated_tpm import EmulatedTpm
from tests.support.system import MakeTpm, Node, System

SIGN = 0x15D  # TPM_CC_Sign, TPM 2.0 Part 2 §6.5.2


@pytest.fixture
def node(system: System, make_tpm: MakeTpm, request: pytest.FixtureRequest) -> Node:
    name = f"tpm-{abs(hash(request.node.name)) % 10**6}"
    found = system.add_node(name, make_tpm(name))
    found.enrol()
    return found


def test_a_handshake_through_the_gateway_is_signed_by_the_tpm(node: Node) -> None:
    before = _signatures(node.device)
    with node.connect() as client:
        assert client.get("/version").status == 200
        assert client.get("/health").status == 200
    assert _signatures(node.device) == before + 1


def _signatures(device: EmulatedTpm) -> int:
    return device.command_codes().count(SIGN)


def test_nothing_in_the_nodes_folder_is_a_private_key_that_others_can_use(node: Node) -> None:
    for path in node.settings.directory.rglob("*"):
        if path.is_file():
            assert path.stat().st_mode & 0o077 == 0
            assert b"PRIVATE KEY" not in path.read_bytes().replace(b"TSS2 PRIVATE KEY", b"")


def test_a_stolen_disk_without_its_tpm_gets_nowhere(system: System, node: Node, make_tpm: MakeTpm) -> None:
    thief = Node(system, f"{node.name}-thief", make_tpm("thief"))
    shutil.copytree(node.settings.directory, thief.settings.directory)
    for words in (("call", "GET", "/version"), ("renew",)):
        told = thief.run(*words, expect=1).err
        assert "what to do" in told
        assert told.split(":")[0] in {"tls_key_unusable", "tpm_unavailable"}
    with node.connect() as client:
        assert client.get("/version").status == 200


def test_a_stolen_disk_with_its_tpm_switched_off_gets_nowhere(node: Node) -> None:
    node.device.shut_down()
    assert "tpm_unavailable" in node.call("GET", "/version", expect=1).err
