"""Where trust begins: what `initialise` leaves in the folder, and what a second or a broken-off run does."""

from __future__ import annotations

import hashlib
import stat
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from foundation.faults import Fault
from foundation.identity import State
from foundation.reasons import Reason
from foundation.storage.database import Database
from foundation.storage.settings import StorageSettings
from pki import bootstrap
from pki.authority import Authority
from pki.bootstrap import OPERATOR_ROLES, initialise, renew_calling_certificate, renew_server_certificate
from pki.settings import AuthoritySettings
from pki.signer import open_key
from tests.fakes.audit import MemoryAuditLog
from tests.fakes.clock import ManualClock
from tests.support.site import TRUST_DOMAIN, Site, storage_url

SECRET = {
    "root.key",
    "root.passphrase",
    "issuing.key",
    "issuing.passphrase",
    "policy.key",
    "server.key",
    "operator.key",
}
PUBLIC = {"root.pem", "root.crl", "issuing.pem", "policy.pub", "server.pem", "operator.pem"}


def _certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificates(path.read_bytes())[0]


async def test_what_lies_in_the_folder(site: Site) -> None:
    folder = site.settings.folder
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert set(modes) == SECRET | PUBLIC
    assert {name for name, mode in modes.items() if mode == 0o600} == SECRET
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for key, passphrase in (("root.key", "root.passphrase"), ("issuing.key", "issuing.passphrase")):
        open_key((folder / key).read_bytes(), (folder / passphrase).read_bytes().strip())


async def test_openssl_accepts_every_chain_in_strict_mode(site: Site) -> None:
    at = str(int(site.clock.now()))
    for name, purpose in (("server", "sslserver"), ("operator", "sslclient")):
        command = ["openssl", "verify", "-x509_strict", "-attime", at, "-purpose", purpose, "-CAfile", "root.pem"]
        command += ["-untrusted", "issuing.pem", f"{name}.pem"]
        done = subprocess.run(command, cwd=site.settings.folder, capture_output=True, text=True, check=False)  # noqa: ASYNC221  # alone
        assert done.returncode == 0, done.stdout + done.stderr


async def test_the_cas_are_what_they_should_be(site: Site) -> None:
    root, issuing = (_certificate(site.settings.folder / name) for name in ("root.pem", "issuing.pem"))
    issuing.verify_directly_issued_by(root)
    for ca, length in ((root, None), (issuing, 0)):
        constraints = ca.extensions.get_extension_for_class(x509.BasicConstraints)
        assert (constraints.critical, constraints.value.ca, constraints.value.path_length) == (True, True, length)
        usage = ca.extensions.get_extension_for_class(x509.KeyUsage)
        assert (usage.critical, usage.value.key_cert_sign, usage.value.digital_signature) == (True, True, False)
    assert (root.not_valid_after_utc - root.not_valid_before_utc).days == 3652
    assert hashlib.sha256(root.public_bytes(serialization.Encoding.DER)).digest() == site.authority.root_sha256
    crl = x509.load_der_x509_crl((site.settings.folder / "root.crl").read_bytes())
    assert crl.is_signature_valid(root.public_key())  # type: ignore[arg-type]  # an ECDSA key


async def test_the_first_operator_may_do_everything_for_a_day(site: Site) -> None:
    leaf = _certificate(site.settings.folder / "operator.pem")
    assert leaf.not_valid_after_utc.timestamp() - site.clock.now() == 86400
    (uri,) = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert uri.value == f"spiffe://{TRUST_DOMAIN}/operator/admin"
    entry = next(one for one in await site.authority.inventory.page() if one.id.name == "admin")
    assert (entry.record.roles, entry.record.state) == (OPERATOR_ROLES, State.ACTIVE)


async def test_a_second_run_is_refused_and_changes_nothing(site: Site) -> None:
    before = {path.name: path.read_bytes() for path in site.settings.folder.iterdir()}
    with pytest.raises(Fault) as caught:
        await initialise(site.settings, site.database, site.audit, site.clock)
    assert caught.value.reason is Reason.CONFLICT
    assert {path.name: path.read_bytes() for path in site.settings.folder.iterdir()} == before


@pytest.mark.parametrize("step", ["_make_policy_key", "renew_server_certificate", "_first_operator", "_keep_facts"])
async def test_a_run_that_was_stopped_is_taken_up_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    class Stopped(BaseException):
        pass

    def stop(*_: object, **__: object) -> None:
        raise Stopped

    settings = AuthoritySettings(TRUST_DOMAIN, tmp_path / "authority")
    database = await Database.open(StorageSettings(storage_url(tmp_path)))
    around = (settings, database, MemoryAuditLog(), ManualClock())
    try:
        with monkeypatch.context() as patch:
            patch.setattr(bootstrap, step, stop)
            with pytest.raises(Stopped):
                await initialise(*around)
        root = (settings.folder / "root.pem").read_bytes()
        made = await initialise(*around)
        assert (settings.folder / "root.pem").read_bytes() == root
        assert (await Authority.open(*around)).root_sha256 == made.root_sha256
    finally:
        await database.close()


async def test_no_audit_no_authority(tmp_path: Path) -> None:
    settings = AuthoritySettings(TRUST_DOMAIN, tmp_path / "authority")
    database = await Database.open(StorageSettings(storage_url(tmp_path)))
    audit = MemoryAuditLog()
    audit.broken = True
    try:
        with pytest.raises(Fault) as caught:
            await initialise(settings, database, audit, ManualClock())
    finally:
        await database.close()
    assert caught.value.reason is Reason.AUDIT_FAILED
    assert list(settings.folder.iterdir()) == []


async def test_what_a_gateway_here_proves_to_upstreams_is_no_listeners(site: Site) -> None:
    args = (site.authority, site.settings, site.clock)
    assert await renew_calling_certificate(*args)
    assert not await renew_calling_certificate(*args)
    leaf = _certificate(site.settings.folder / "calling.pem")
    usages = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert x509.ExtendedKeyUsageOID.CLIENT_AUTH in usages
    site.clock.advance(17 * 3600)
    assert await renew_calling_certificate(*args)
    assert not await renew_server_certificate(*args)


async def test_the_listeners_certificate_is_renewed_in_time(site: Site) -> None:
    args = (site.authority, site.settings, site.clock)
    assert not await renew_server_certificate(*args)
    site.clock.advance(21 * 86400)
    assert await renew_server_certificate(*args)
    assert not await renew_server_certificate(*args)
    renamed = replace(site.settings, server_names=("gw.example", "::1"))
    assert await renew_server_certificate(site.authority, renamed, site.clock)
    leaf = _certificate(site.settings.folder / "server.pem")
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["gw.example"]


async def test_a_passphrase_may_be_kept_elsewhere(tmp_path: Path) -> None:
    elsewhere = tmp_path / "usb"
    elsewhere.mkdir(mode=0o700)
    settings = AuthoritySettings(TRUST_DOMAIN, tmp_path / "authority", passphrase_file=elsewhere / "pass")
    database = await Database.open(StorageSettings(storage_url(tmp_path)))
    try:
        await initialise(settings, database, MemoryAuditLog(), ManualClock())
        assert not (settings.folder / "issuing.passphrase").exists()
        (elsewhere / "pass").chmod(0o644)
        with pytest.raises(Fault) as caught:
            await Authority.open(settings, database, MemoryAuditLog(), ManualClock())
    finally:
        await database.close()
    assert caught.value.reason is Reason.FILE_MODE_UNSAFE
