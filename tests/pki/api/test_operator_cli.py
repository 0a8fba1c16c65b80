"""`sallyport operator`, over the Unix socket and over TLS, against a real authority with the real policy."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from click.testing import Result
from cryptography import x509
from typer.testing import CliRunner

from foundation.api import api_application
from foundation.callers import LocalCallers
from foundation.faults import Fault
from foundation.identifiers import Kind
from foundation.serving import serve_unix
from foundation.tls import KeyPair
from pki.entries import Expected
from pki.operator_cli import app
from tests.support.enforced import Enforced
from tests.support.installation import TRUST_DOMAIN, Installation, PermitAll, installation


@asynccontextmanager
async def _system(folder: Path) -> AsyncIterator[tuple[Installation, Enforced]]:
    async with installation(folder / "site") as site:
        enforced = Enforced(site)
        await enforced.load()
        yield site, enforced


@asynccontextmanager
async def _socket(site: Installation, path: Path) -> AsyncIterator[tuple[str, str]]:
    application = api_application(site.routes(), LocalCallers(TRUST_DOMAIN).identify, PermitAll())
    async with serve_unix(application, path):
        yield "--socket", str(path)


async def _run(*words: object) -> Result:
    return await asyncio.to_thread(CliRunner().invoke, app, [str(word) for word in words])


def _files(pair: KeyPair) -> tuple[object, ...]:
    return ("--out-key", pair.key, "--out-cert", pair.certificate)


def _proof(site: Installation, pair: KeyPair) -> tuple[object, ...]:
    return ("--cert", pair.certificate, "--key", pair.key, "--ca", site.settings.folder / "root.pem")


def _serial(pair: KeyPair) -> str:
    return format(x509.load_pem_x509_certificates(pair.certificate.read_bytes())[0].serial_number, "x")


async def test_root_issues_and_the_operator_renews(tmp_path: Path) -> None:
    async with _system(tmp_path) as (site, policy):
        await site.authority.inventory.add(Expected(site.id("bob", Kind.OPERATOR), roles=("viewer",)), "test")
        bob = KeyPair(tmp_path / "bob.pem", tmp_path / "bob.key")
        async with _socket(site, tmp_path / "api.sock") as at:
            made = await _run("issue", "bob", *_files(bob), *at)
            assert "/operator/bob until " in made.stdout, made.output
            again = await _run("issue", "bob", *_files(bob), *at)
            assert isinstance(again.exception, Fault)
            assert again.exception.field == str(bob.key)
        actors = [event.actor for event in site.audit.events if event.kind == "certificate.issued"]
        assert actors[-1] == f"spiffe://{TRUST_DOMAIN}/operator/local-uid-0"
        first, first_key = _serial(bob), bob.key.read_bytes()
        await policy.catch_up()
        async with site.serving(policy.authorizer) as address:
            server = ("--server", f"localhost:{address.port}")
            renewed = await _run("renew", *server, *_proof(site, bob), "--json")
            assert renewed.exit_code == 0, renewed.exception
            assert json.loads(renewed.stdout)["serial"] == _serial(bob) != first
            assert bob.key.read_bytes() != first_key
            assert bob.key.stat().st_mode & 0o777 == 0o600
            # The pair in place serves; and renews, for it is the newest.
            await policy.catch_up()
            assert (await _run("renew", *server, *_proof(site, bob))).exit_code == 0


async def test_who_may_not_make_operators_issues_no_certificate_of_one(tmp_path: Path) -> None:
    async with _system(tmp_path) as (site, policy):
        eve = await site.certify("eve", Kind.OPERATOR, ("operator",))
        await policy.catch_up()
        taken = KeyPair(tmp_path / "taken.pem", tmp_path / "taken.key")
        async with site.serving(policy.authorizer) as address:
            server = ("--server", f"localhost:{address.port}")
            done = await _run("issue", "admin", *_files(taken), *server, *_proof(site, eve))
        assert isinstance(done.exception, Fault)
        assert done.exception.reason.code == "role_missing"
        assert not taken.certificate.exists()
        assert not taken.key.exists()


async def test_a_name_that_nobody_has(tmp_path: Path) -> None:
    pair = KeyPair(tmp_path / "a.pem", tmp_path / "a.key")
    async with _system(tmp_path) as (site, _), _socket(site, tmp_path / "api.sock") as at:
        done = await _run("issue", "nobody", *_files(pair), *at)
    assert isinstance(done.exception, Fault)
    assert (done.exception.reason.code, done.exception.field) == ("not_found", "name")


@pytest.mark.parametrize("words", [(), ("--out-key", "a", "--out-cert", "b")])
async def test_over_the_socket_there_is_no_certificate_to_renew(tmp_path: Path, words: tuple[str, ...]) -> None:
    done = await _run("renew", "--socket", tmp_path / "api.sock", *words)
    assert isinstance(done.exception, Fault)
    assert done.exception.field == "server"
