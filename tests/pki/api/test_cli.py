"""The commands, over the Unix socket and over TLS, against a real authority."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from foundation.api import api_application
from foundation.callers import LocalCallers
from foundation.faults import Fault
from foundation.serving import serve_unix
from foundation.wire.records import CHAIN_START, NodeRecord, RecordBatch, RecordKind
from pki.cli import cert, inventory, token
from tests.support.installation import TRUST_DOMAIN, Installation, PermitAll, installation

Run = Callable[..., "asyncio.Future[Result]"]


@asynccontextmanager
async def _commands(tmp_path: Path) -> AsyncIterator[tuple[Installation, Path]]:
    path = tmp_path / "api.sock"
    async with installation(tmp_path / "site") as site:
        application = api_application(site.routes(), LocalCallers(TRUST_DOMAIN).identify, PermitAll())
        async with serve_unix(application, path):
            yield site, path


async def _run(app: typer.Typer, *words: str, stdin: str = "") -> Result:
    """The commands block: they run beside the authority's loop."""
    return await asyncio.to_thread(CliRunner().invoke, app, list(words), input=stdin)


async def test_the_life_of_an_entry(tmp_path: Path) -> None:
    async with _commands(tmp_path) as (site, path):
        at = ("--socket", str(path))
        added = await _run(inventory, "add", "edge-1", "--role", "edge-agent", "--tier", "2", "--label", "rack=3", *at)
        assert added.exit_code == 0, added.output
        assert "edge-agent" in added.output
        updated = await _run(inventory, "update", "edge-1", "--site", "lab", "--json", *at)
        assert json.loads(updated.stdout)["site"] == "lab"
        assert json.loads(updated.stdout)["labels"] == {"rack": "3"}
        for act, state in (("quarantine", "quarantined"), ("release", "expected")):
            done = await _run(inventory, act, "edge-1", "--json", *at)
            assert json.loads(done.stdout)["state"] == state
        assert "edge-1 is revoked (1 revocations)" in (await _run(inventory, "revoke", "edge-1", *at)).output
        assert "was revoked already" in (await _run(inventory, "revoke", "edge-1", *at)).output
        admitted = await _run(inventory, "admit", "edge-1", "--json", *at)
        assert json.loads(admitted.stdout)["state"] == "expected"
        listed = await _run(inventory, "list", "--kind", "node", "--json", *at)
        assert [entry["name"] for entry in json.loads(listed.stdout)] == ["edge-1"]
        assert "edge-1" in (await _run(inventory, "list", *at)).stdout
        actors = {event.actor for event in site.audit.events if event.kind == "identity.quarantined"}
    assert actors == {f"spiffe://{TRUST_DOMAIN}/operator/local-uid-0"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("nodes.json", '[{"name": "n1", "roles": ["a", "b"], "tier": 2}, {"name": "n2", "kind": "node"}]'),
        ("nodes.csv", "name,kind,roles,tier,labels\nn1,node,a b,2,k=v x=y\nn2,node,,,\n"),
    ],
)
async def test_import(tmp_path: Path, name: str, content: str) -> None:
    file = tmp_path / name
    file.write_text(content)
    async with _commands(tmp_path) as (site, path):
        done = await _run(inventory, "import", str(file), "--socket", str(path))
        assert "2 identities" in done.stdout, done.output
        entry = await site.authority.inventory.get(site.id("n1"))
        again = await _run(inventory, "import", str(file), "--socket", str(path))
    assert entry.record.roles == ("a", "b")
    assert entry.record.tier == 2
    assert isinstance(again.exception, Fault)
    assert again.exception.field == "line 1"


@pytest.mark.parametrize(
    ("name", "content", "where"),
    [
        ("a.json", '[{"name": "n1"}, {"name": "../x"}]', "body.entries[1].name"),
        ("a.json", '[{"name": "n1", "colour": "red"}]', "body.entries[0]"),
        ("a.json", "{}", "a.json"),
        ("a.csv", "name,tier\nn1,high\n", "a.csv:2.tier"),
        ("a.csv", "name,tier\nn1\n", "a.csv:2"),
    ],
)
async def test_a_wrong_file_is_named_and_changes_nothing(tmp_path: Path, name: str, content: str, where: str) -> None:
    file = tmp_path / name
    file.write_text(content)
    async with _commands(tmp_path) as (site, path):
        done = await _run(inventory, "import", str(file), "--socket", str(path))
        assert isinstance(done.exception, Fault)
        assert done.exception.field.endswith(where)
        nodes = [entry for entry in await site.authority.inventory.page() if entry.id.kind == "node"]
    assert nodes == []


async def test_tokens_and_certificates(tmp_path: Path) -> None:
    async with _commands(tmp_path) as (site, path):
        at = ("--socket", str(path))
        shown = await _run(token, "create", "edge-1", "--ttl", "30m", *at)
        file = tmp_path / "token"
        kept = await _run(token, "create", "edge-1", "--output", str(file), *at)
        assert shown.stdout.strip().startswith("sp1_")
        assert "sp1_" not in kept.output
        assert file.stat().st_mode & 0o777 == 0o600
        listed = await _run(token, "list", "--json", *at)
        assert [each["state"] for each in json.loads(listed.stdout)] == ["open", "open"]
        assert "secret" not in listed.stdout
        assert "2 tokens are void" in (await _run(token, "void", "edge-1", *at)).stdout
        certificates = json.loads((await _run(cert, "list", "--json", *at)).stdout)
        assert {each["profile"] for each in certificates} == {"server", "operator"}
        serial = certificates[0]["serial"]
        assert (await _run(cert, "show", serial, "--pem", *at)).stdout.startswith("-----BEGIN CERTIFICATE-----")
        assert "is revoked" in (await _run(cert, "revoke", serial, "--reason", "key_compromise", *at)).stdout
        assert (await _run(cert, "chain", *at)).stdout.count("BEGIN CERTIFICATE") == 2
        crl = tmp_path / "issuing.crl"
        assert (await _run(cert, "crl", str(crl), *at)).exit_code == 0
        missing = await _run(cert, "show", "abc", *at)
    assert isinstance(missing.exception, Fault)
    assert missing.exception.reason.code == "not_found"
    assert crl.read_bytes()[0] == 0x30
    assert site.audit.kinds().count("token.minted") == 2


async def test_an_operator_over_tls(tmp_path: Path) -> None:
    async with installation(tmp_path / "site") as site, site.serving() as address:
        pair, ca = site.operator, site.settings.folder / "root.pem"
        server = ("--server", f"localhost:{address.port}")
        proof = ("--cert", str(pair.certificate), "--key", str(pair.key), "--ca", str(ca))
        listed = await _run(inventory, "list", "--json", *server, *proof)
        assert listed.exit_code == 0, listed.exception
        assert "admin" in listed.stdout
        half = await _run(inventory, "list", *server)
        assert isinstance(half.exception, Fault)
        assert half.exception.field == "server"


async def test_the_settings_name_the_socket(tmp_path: Path) -> None:
    config = tmp_path / "sallyport.toml"
    config.write_text(f'[api]\nsocket = "{tmp_path}/api.sock"\n')
    async with _commands(tmp_path):
        listed = await _run(inventory, "list", "--json", "--config", str(config))
    assert listed.exit_code == 0


async def test_nobody_listens(tmp_path: Path) -> None:
    done = await _run(inventory, "list", "--socket", str(tmp_path / "nothing.sock"))
    assert isinstance(done.exception, Fault)
    assert done.exception.reason.code == "server_unreachable"


async def test_what_a_node_noted(tmp_path: Path) -> None:
    line = NodeRecord(1e9, RecordKind.DECISION, {"id": "n-1", "allow": False}).encode()
    async with _commands(tmp_path) as (site, path):
        await site.authority.node_records.take(site.id("edge-1"), RecordBatch("1" * 32, 1, CHAIN_START, (line,)))
        at = ("--socket", str(path))
        listed = await _run(inventory, "records", "edge-1", "--json", *at)
        assert [each["body"]["id"] for each in json.loads(listed.stdout)] == ["n-1"]
        assert "id=n-1" in (await _run(inventory, "records", "edge-1", "--kind", "decision", *at)).stdout
        assert json.loads((await _run(inventory, "records", "edge-1", "--kind", "health", "--json", *at)).stdout) == []
