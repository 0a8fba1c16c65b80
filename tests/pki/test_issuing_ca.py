"""The issuing CA renewed by the root's key: what was issued stays good, what is issued lives on, nobody else can."""

from __future__ import annotations

import asyncio
import shutil
import stat
from pathlib import Path

import pytest
from cryptography import x509
from typer.testing import CliRunner

from foundation.faults import Fault
from foundation.reasons import Reason
from pki.authority import Authority
from pki.bootstrap import DAY, ISSUING_SECONDS, renew_server_certificate
from pki.ca_cli import app
from pki.issuing_ca import RootKey, renew_issuing
from tests.support.site import ACTOR, TRUST_DOMAIN, Site, open_site

LATER = 300 * DAY


@pytest.fixture
def offline(site: Site, tmp_path: Path) -> Path:
    """A copy of the public files, with the root's key taken off the authority's machine."""
    folder = tmp_path / "offline"
    folder.mkdir()
    for name in ("root.pem", "root.crl", "issuing.pem"):
        shutil.copy(site.settings.folder / name, folder)
    for name in ("root.key", "root.passphrase"):
        shutil.move(site.settings.folder / name, folder)
    return folder


def key_in(folder: Path) -> RootKey:
    return RootKey(folder / "root.key", folder / "root.passphrase")


def read(folder: Path, name: str = "issuing.pem") -> x509.Certificate:
    return x509.load_pem_x509_certificate((folder / name).read_bytes())


def bring_back(offline: Path, site: Site) -> None:
    for name in ("issuing.pem", "root.crl"):
        shutil.copy(offline / name, site.settings.folder)


async def reopened(site: Site) -> Authority:
    return await Authority.open(site.settings, site.database, site.audit, site.clock)


async def test_the_new_certificate_is_the_old_ones_with_more_time(site: Site, offline: Path) -> None:
    old, root, now = read(offline), read(offline, "root.pem"), int(site.clock.now()) + LATER
    new = await renew_issuing(offline, key_in(offline), now)
    assert new == read(offline)
    assert (new.subject, new.public_key()) == (old.subject, old.public_key())
    assert new.serial_number != old.serial_number
    assert int(new.not_valid_after_utc.timestamp()) == now + ISSUING_SECONDS
    new.verify_directly_issued_by(root)
    numbers = [
        x509.load_der_x509_crl((folder / "root.crl").read_bytes())
        .extensions.get_extension_for_class(x509.CRLNumber)
        .value.crl_number
        for folder in (site.settings.folder, offline)
    ]
    assert numbers == [1, 2]


async def test_what_was_issued_stays_good_and_what_is_issued_lives_longer(site: Site, offline: Path) -> None:
    node = await site.expect()
    before = x509.load_der_x509_certificate((await site.issue(node)).chain[0])
    site.clock.advance(ISSUING_SECONDS - 60)
    await renew_issuing(offline, key_in(offline), int(site.clock.now()))
    bring_back(offline, site)
    authority = await reopened(site)
    issuing, _root = (x509.load_der_x509_certificate(der) for der in authority.chain)
    assert issuing == read(offline)
    before.verify_directly_issued_by(issuing)
    minted = await authority.tokens.mint(node, 60.0, ACTOR)
    assert minted.root_sha256 == site.authority.root_sha256


async def test_the_audit_log_has_which_certificate_is_used(site: Site, offline: Path) -> None:
    await reopened(site)
    told = [event.detail["serial"] for event in site.audit.events if event.kind == "authority.issuing"]
    assert len(told) == 1  # at `init`, and not again
    new = await renew_issuing(offline, key_in(offline), int(site.clock.now()) + LATER)
    bring_back(offline, site)
    await reopened(site)
    await reopened(site)
    told = [event.detail["serial"] for event in site.audit.events if event.kind == "authority.issuing"]
    assert told[1:] == [format(new.serial_number, "x")]


async def test_a_new_key_takes_over_from_one_that_was_withdrawn(site: Site, offline: Path) -> None:
    old = read(offline)
    identifier = old.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest.hex()
    await site.authority.revocations.withdraw_issuer(identifier, TRUST_DOMAIN, ACTOR)
    node = await site.expect()
    with pytest.raises(Fault) as caught:
        await site.issue(node)
    assert caught.value.reason is Reason.ISSUER_WITHDRAWN

    passphrase = (site.settings.folder / "issuing.passphrase").read_bytes().strip()
    new = await renew_issuing(offline, key_in(offline), int(site.clock.now()), passphrase)
    assert new.public_key() != old.public_key()
    assert stat.S_IMODE((offline / "issuing.key").stat().st_mode) == 0o600
    bring_back(offline, site)
    with pytest.raises(Fault) as without_its_key:
        await reopened(site)
    assert without_its_key.value.reason is Reason.SIGNER_FAILED
    shutil.copy(offline / "issuing.key", site.settings.folder)
    authority = await reopened(site)
    assert await renew_server_certificate(authority, site.settings, site.clock)  # the old key's is of no use now
    assert not await renew_server_certificate(authority, site.settings, site.clock)
    server = x509.load_pem_x509_certificates((site.settings.folder / "server.pem").read_bytes())
    server[0].verify_directly_issued_by(new)
    assert server[1] == new


async def test_nothing_outlives_the_root(site: Site, offline: Path) -> None:
    end = int(read(offline, "root.pem").not_valid_after_utc.timestamp())
    new = await renew_issuing(offline, key_in(offline), end - DAY)
    assert int(new.not_valid_after_utc.timestamp()) == end
    before = (offline / "issuing.pem").read_bytes()
    with pytest.raises(Fault) as caught:
        await renew_issuing(offline, key_in(offline), end)
    assert caught.value.reason is Reason.PROFILE_REFUSED
    assert (offline / "issuing.pem").read_bytes() == before


async def test_another_roots_key_renews_nothing(site: Site, offline: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in offline.iterdir()}
    async with open_site(tmp_path / "other") as other:
        with pytest.raises(Fault) as caught:
            await renew_issuing(offline, key_in(other.settings.folder), int(site.clock.now()))
        assert caught.value.reason is Reason.SIGNER_FAILED
        shutil.copy(other.settings.folder / "issuing.pem", offline)
        with pytest.raises(Fault) as foreign:
            await renew_issuing(offline, key_in(offline), int(site.clock.now()))
        assert foreign.value.reason is Reason.SIGNER_FAILED
    (offline / "issuing.pem").write_bytes(before["issuing.pem"])
    assert {path.name: path.read_bytes() for path in offline.iterdir()} == before


async def test_a_key_is_never_kept_open(site: Site, offline: Path) -> None:
    before = read(offline)
    with pytest.raises(Fault) as caught:
        await renew_issuing(offline, key_in(offline), int(site.clock.now()), b"")
    assert caught.value.reason is Reason.SIGNER_FAILED
    assert read(offline) == before
    assert not (offline / "issuing.key").exists()


async def test_an_issuing_ca_that_the_root_did_not_sign_is_not_used(site: Site, tmp_path: Path) -> None:
    async with open_site(tmp_path / "other") as other:
        shutil.copy(other.settings.folder / "root.pem", site.settings.folder)
    with pytest.raises(Fault) as caught:
        await reopened(site)
    assert caught.value.reason is Reason.SIGNER_FAILED


@pytest.mark.parametrize("missing", ["root.pem", "root.crl", "issuing.pem", "root.key", "root.passphrase"])
async def test_a_file_that_is_missing_is_named(site: Site, offline: Path, missing: str) -> None:
    (offline / missing).unlink()
    with pytest.raises(Fault) as caught:
        await renew_issuing(offline, key_in(offline), int(site.clock.now()))
    assert caught.value.reason is Reason.FILE_UNREADABLE
    assert caught.value.field.endswith(missing)


async def test_the_command_says_until_when(site: Site, offline: Path) -> None:
    done = await asyncio.to_thread(CliRunner().invoke, app, ["renew", "--folder", str(offline), "--json"])
    assert done.exit_code == 0, done.output
    assert format(read(offline).serial_number, "x") in done.output
