"""A gateway's own certificate: loaded anew when it changes, kept when what replaces it is no use, renewed in time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography import x509

from foundation.faults import Fault
from foundation.identifiers import Kind
from foundation.reasons import Reason
from foundation.tls import KeyPair
from gateway import identity
from gateway.identity import Certificates, Renewal, agent, is_due
from pki.entries import Expected
from pki.issue import IssueRequest
from pki.profile import ProfileName
from tests.fakes.clock import ManualClock
from tests.support.installation import Installation, installation
from tests.support.site import attested, new_spki


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Installation]:
    async with installation(tmp_path / "site") as made:
        yield made


@pytest.fixture
async def own(site: Installation, tmp_path: Path) -> KeyPair:
    """Key and chain in one file, as the node's program leaves them."""
    pair = await site.certify("gw-1", Kind.GATEWAY)
    return write(tmp_path / "tls.pem", pair)


def write(path: Path, pair: KeyPair) -> KeyPair:
    path.touch(0o600)
    path.write_bytes(pair.key.read_bytes() + pair.certificate.read_bytes())
    return KeyPair(path, path)


def root(site: Installation) -> Path:
    return site.settings.folder / "root.pem"


async def test_one_file_serves_callers_and_calls(site: Installation, own: KeyPair) -> None:
    certificates = Certificates(own, root(site))
    with pytest.raises(Fault) as caught:
        certificates.proven()
    assert caught.value.reason is Reason.NOT_ENROLLED
    assert certificates.load() == ("certificate", "root")
    assert not certificates.load()
    assert certificates.proven().verify_mode.name == "CERT_REQUIRED"
    assert certificates.strangers().verify_mode.name == "CERT_NONE"
    assert certificates.client().check_hostname
    assert not certificates.expired(site.clock.now())
    assert certificates.expired(site.clock.now() + 25 * 3600)


async def test_what_is_no_use_leaves_what_is_loaded(site: Installation, own: KeyPair) -> None:
    certificates = Certificates(own, root(site))
    certificates.load()
    before = certificates.proven()
    other = await site.certify("gw-2", Kind.GATEWAY)
    for broken in (b"", b"no PEM", own.key.read_bytes()[:241] + other.certificate.read_bytes()):
        own.certificate.write_bytes(broken)
        with pytest.raises(Fault) as caught:
            certificates.load()
        assert caught.value.reason is Reason.FILE_UNREADABLE
        with pytest.raises(Fault):
            certificates.differs()
        assert certificates.proven() is before
    write(own.certificate, other)
    assert certificates.differs() == ("certificate",)
    assert certificates.proven() is before
    assert certificates.load() == ("certificate",)
    assert certificates.differs() == ()
    assert certificates.proven() is not before


async def test_a_key_that_others_may_read_is_refused(site: Installation, own: KeyPair) -> None:
    own.key.chmod(0o640)
    with pytest.raises(Fault) as caught:
        Certificates(own, root(site)).load()
    assert caught.value.reason is Reason.FILE_MODE_UNSAFE


async def test_it_is_renewed_from_the_middle_of_its_life(site: Installation, own: KeyPair) -> None:
    certificates = Certificates(own, root(site))
    certificates.load()
    leaf, now = certificates.leaf, site.clock.now()
    assert not is_due(leaf, now + 11.5 * 3600)
    assert is_due(leaf, now + 12.5 * 3600)
    assert is_due(None, now)


async def test_an_attestation_that_ends_first_is_renewed_first(site: Installation) -> None:
    gateway = (await site.authority.inventory.add(Expected(site.id("gw-9", Kind.GATEWAY)), "test")).id
    passed = attested(site.clock, "gw-9")  # for 300 seconds
    request = IssueRequest(gateway, ProfileName.GATEWAY, new_spki(), "test", attested=passed, names=("localhost",))
    leaf = x509.load_der_x509_certificate((await site.authority.issue(request)).chain[0])
    assert not is_due(leaf, site.clock.now() + 60)
    assert is_due(leaf, site.clock.now() + 200)


async def test_the_node_s_program_tells_its_own_reason(tmp_path: Path) -> None:
    config = tmp_path / "sallyport.toml"
    config.write_text(f'[agent]\ndirectory = "{tmp_path}/agent"\n')
    with pytest.raises(Fault) as caught:
        await agent("renew", "--config", str(config))
    assert caught.value.reason is Reason.NOT_ENROLLED


async def test_renewal_goes_on_after_a_failure(
    site: Installation, own: KeyPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificates = Certificates(own, root(site))
    certificates.load()
    clock, asked = ManualClock(site.clock.now()), []
    renewed = await site.certify("gw-2", Kind.GATEWAY)

    async def program(*words: str) -> str:
        asked.append(words)
        if len(asked) == 1:
            raise Fault(Reason.SERVER_UNREACHABLE)
        write(own.certificate, renewed)
        return ""

    monkeypatch.setattr(identity, "agent", program)
    task = asyncio.create_task(Renewal(certificates, ("renew", "--if-due"), clock).run())
    before = certificates.client()
    clock.advance(13 * 3600)
    while len(asked) < 2:
        await asyncio.sleep(0)
        clock.advance(identity.CHECKED_EVERY)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert set(asked) == {("renew", "--if-due")}
    assert certificates.client() is not before
