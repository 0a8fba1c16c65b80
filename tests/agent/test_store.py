"""The node's files and settings, whole or refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.configuration import RunSettings
from agent.settings import Address, AgentSettings
from agent.store import Identity, KeyFile, NodeStore, Pending
from foundation.faults import Fault
from foundation.reasons import Reason
from foundation.wire.enrolment import Issued

_KEY = KeyFile("software", b"-----BEGIN PRIVATE KEY-----\n")
_IDENTITY = Identity(Issued("spiffe://test/node/a", (b"leaf", b"root"), 2, 1, "none", 2), _KEY)
_PENDING = Pending("enrol", b"root", b"message", _KEY, b"spki")


@pytest.fixture
def store(tmp_path: Path) -> NodeStore:
    return NodeStore(tmp_path / "node")


def test_what_is_saved_is_read(store: NodeStore) -> None:
    store.save_pending(_PENDING)
    assert store.pending() == _PENDING
    store.save(_IDENTITY)
    assert store.identity() == _IDENTITY
    assert store.pending() is None


def test_secrets_do_not_show(store: NodeStore) -> None:
    assert "PRIVATE" not in repr(_IDENTITY) + repr(_PENDING)


def test_a_file_that_others_may_read_is_refused(store: NodeStore, tmp_path: Path) -> None:
    store.save(_IDENTITY)
    (tmp_path / "node" / "identity.json").chmod(0o640)
    with pytest.raises(Fault) as caught:
        store.identity()
    assert caught.value.reason is Reason.FILE_MODE_UNSAFE


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("version", 2),
        ("version", None),
        ("key_kind", "usb"),
        ("key", 1),
        ("key", "ü"),
        ("issued", "?"),
        ("issued", "e30="),
        ("surplus", 1),
    ],
)
def test_a_damaged_file_is_refused(store: NodeStore, tmp_path: Path, name: str, value: object) -> None:
    store.save(_IDENTITY)
    path = tmp_path / "node" / "identity.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
    with pytest.raises(Fault):
        store.identity()


@given(raw=st.binary(max_size=200))
@settings(max_examples=50)
def test_no_content_breaks_the_reader(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    folder = tmp_path_factory.mktemp("node")
    path = folder / "pending.json"
    path.write_bytes(raw)
    path.chmod(0o600)
    with pytest.raises(Fault):
        NodeStore(folder).pending()


def test_nothing_there_is_not_enrolled(store: NodeStore) -> None:
    assert store.pending() is None
    with pytest.raises(Fault) as caught:
        store.identity()
    assert caught.value.reason is Reason.NOT_ENROLLED


@pytest.mark.parametrize(
    ("text", "address"),
    [("a.example:8443", Address("a.example", 8443)), ("[::1]:1", Address("::1", 1)), ("10.0.0.1:65535", None)],
)
def test_addresses_read_as_they_are_written(text: str, address: Address | None) -> None:
    parsed = Address.parse(text, "x")
    assert address in (None, parsed)
    assert str(parsed) == text


@pytest.mark.parametrize(
    "text", ["", "a", "a:", ":1", "a:0", "a:65536", "a:+1", "a:1_0", "a:\u0661", "a b:1", "u@h:1", "h/p:1"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(Fault) as caught:
        Address.parse(text, "agent.authority")
    assert (caught.value.reason, caught.value.field) == (Reason.SETTING_INVALID, "agent.authority")


def load(tmp_path: Path, text: str) -> AgentSettings:
    path = tmp_path / "agent.toml"
    path.write_text(text)
    return AgentSettings.load(path)


def test_commands_read_the_file_of_a_running_agent(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text('[agent]\nnode = "edge-1"\ndrain = "3s"\nthrough_tunnels = true\n[agent.tunnel]\nping = "1s"\n')
    assert AgentSettings.load(path).node == RunSettings.load(path).node.node == "edge-1"


def test_settings_have_safe_defaults(tmp_path: Path) -> None:
    read = load(tmp_path, "")
    assert read == AgentSettings()
    assert read.attestation == "tpm"


def test_settings_are_read(tmp_path: Path) -> None:
    read = load(
        tmp_path,
        '[agent]\ndirectory = "/d"\ngateway = "g:1"\nnode = "edge-1"\nek = "EK-RSA2048"\ntimeout = "5s"'
        "\n[other]\nx = 1",
    )
    assert (read.directory, read.gateway, read.node) == (Path("/d"), Address("g", 1), "edge-1")
    assert (read.ek, read.timeout) == ("EK-RSA2048", 5.0)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[agent]\nattestation = 'some'", Reason.SETTING_INVALID),
        ("[agent]\nek = 'EK-9'", Reason.SETTING_INVALID),
        ("[agent]\ngatway = 'g:1'", Reason.SETTING_UNKNOWN),
        ("[agent]\nnode = 'A B'", Reason.MESSAGE_MALFORMED),
        ("[agent", Reason.SETTING_INVALID),
        ("agent = 1", Reason.SETTING_INVALID),
    ],
)
def test_bad_settings_are_named(tmp_path: Path, text: str, reason: Reason) -> None:
    with pytest.raises(Fault) as caught:
        load(tmp_path, text)
    assert caught.value.reason is reason


def test_a_missing_settings_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(Fault) as caught:
        AgentSettings.load(tmp_path / "none.toml")
    assert caught.value.reason is Reason.FILE_UNREADABLE
