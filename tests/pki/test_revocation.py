"""Revocations, their numbers, and the CRL that others read."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from cryptography import x509

from foundation.faults import Fault
from foundation.identity import Revocation, State
from foundation.reasons import Reason
from pki.revocation import CRL_SECONDS
from pki.revocation_reason import RevocationReason
from tests.support.site import ACTOR, Site, attested

pytestmark = pytest.mark.every_storage
WHY = RevocationReason.KEY_COMPROMISE


async def crl(site: Site) -> x509.CertificateRevocationList:
    return x509.load_der_x509_crl(await site.authority.revocations.crl())


async def test_an_identity_goes_with_all_its_living_certificates(site: Site) -> None:
    node = await site.expect()
    serials = {(await site.issue(node)).serial for _ in range(3)}
    made = await site.authority.revocations.revoke_identity(node, WHY, ACTOR)
    assert [one.number for one in made] == [1, 2, 3, 4]
    assert (made[0].serial, {one.serial for one in made[1:]}) == ("", serials)
    assert (await site.authority.inventory.get(node)).record.state is State.REVOKED
    assert await site.authority.revocations.is_revoked(node, "1234")
    assert await site.authority.revocations.revoke_identity(node, WHY, ACTOR) == ()


async def test_expired_certificates_are_left_in_peace(site: Site) -> None:
    node = await site.expect()
    await site.issue(node)
    site.clock.advance(3601)
    assert len(await site.authority.revocations.revoke_identity(node, WHY, ACTOR)) == 1


async def test_a_certificate_is_revoked_once(site: Site) -> None:
    node = await site.expect()
    issued = await site.issue(node)
    first = await site.authority.revocations.revoke_certificate(issued.serial, WHY, ACTOR)
    again = await site.authority.revocations.revoke_certificate(issued.serial, RevocationReason.SUPERSEDED, ACTOR)
    assert first == again
    assert await site.authority.revocations.is_revoked(node, issued.serial)
    assert not await site.authority.revocations.is_revoked(node, "1234")
    assert await site.authority.revocations.page() == (first,)
    assert (await site.authority.revocations.revoke_identity(node, WHY, ACTOR))[0].number == 2
    with pytest.raises(Fault) as caught:
        await site.authority.revocations.revoke_certificate("ff", WHY, ACTOR)
    assert caught.value.reason is Reason.NOT_FOUND


async def test_admitting_again_revives_no_certificate(site: Site) -> None:
    node = await site.expect()
    old = await site.issue(node)
    await site.authority.revocations.revoke_identity(node, WHY, ACTOR)
    admitted = await site.authority.revocations.admit(node, ACTOR)
    assert admitted.record.state is State.EXPECTED
    fresh = await site.issue(node)
    assert await site.authority.revocations.is_revoked(node, old.serial)
    assert not await site.authority.revocations.is_revoked(node, fresh.serial)
    with pytest.raises(Fault) as caught:
        await site.authority.revocations.admit(node, ACTOR)
    assert caught.value.reason is Reason.INVENTORY_STATE


async def test_a_board_may_be_changed_by_retiring_the_name(site: Site) -> None:
    node, other = await site.expect("a"), await site.expect("b")
    await site.issue(node)
    await site.authority.revocations.retire(node, ACTOR)
    await site.issue(other, attested=attested(site.clock, "a"))
    await site.authority.revocations.admit(node, ACTOR)
    await site.issue(node, attested=attested(site.clock, "new board"))


async def test_the_crl_is_what_openssl_reads(site: Site, tmp_path: Path) -> None:
    node = await site.expect()
    issued = await site.issue(node)
    await site.authority.revocations.revoke_certificate(issued.serial, WHY, ACTOR)
    (tmp_path / "crl").write_bytes(await site.authority.revocations.crl())
    issuer = str(site.settings.folder / "issuing.pem")
    command = ["openssl", "crl", "-inform", "DER", "-in", "crl", "-noout", "-text", "-CAfile", issuer]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)  # noqa: ASYNC221  # alone
    assert "verify OK" in done.stderr
    assert f"Serial Number: {issued.serial.upper()}" in done.stdout
    assert "Key Compromise" in done.stdout


async def test_the_crl_is_made_anew_when_it_has_to_be(site: Site) -> None:
    node = await site.expect()
    issued = await site.issue(node)
    first = await site.authority.revocations.crl()
    assert await site.authority.revocations.crl() == first
    await site.authority.revocations.revoke_certificate(issued.serial, RevocationReason.UNSPECIFIED, ACTOR)
    second = await crl(site)
    (listed,) = second
    assert format(listed.serial_number, "x") == issued.serial
    assert len(listed.extensions) == 0  # no reason is better than "unspecified" (RFC 5280 §5.3.1)
    site.clock.advance(CRL_SECONDS / 2)
    third = await crl(site)
    assert len(third) == 0  # the certificate has ended
    numbers = [one.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number for one in (second, third)]
    assert numbers[1] > numbers[0]


async def test_lost_revocations_are_merged_back(site: Site) -> None:
    node, other = await site.expect("a"), await site.expect("b")
    issued = await site.issue(node)
    lost = (
        Revocation(7, node, issued.serial, WHY.value, 1.0),
        Revocation(8, other, "", WHY.value, 1.0),
        Revocation(9, node, "abcdef", WHY.value, 1.0),
    )
    assert await site.authority.revocations.merge(lost, ACTOR) == 3
    assert await site.authority.revocations.merge(lost, ACTOR) == 0
    assert [one.number for one in await site.authority.revocations.page()] == [1, 2, 3]
    assert (await site.authority.inventory.get(other)).record.state is State.REVOKED
    assert {format(one.serial_number, "x") for one in await crl(site)} == {issued.serial, "abcdef"}


async def test_nothing_is_revoked_unrecorded(site: Site) -> None:
    node = await site.expect()
    site.audit.broken = True
    with pytest.raises(Fault):
        await site.authority.revocations.revoke_identity(node, WHY, ACTOR)
    assert await site.authority.revocations.page() == ()
