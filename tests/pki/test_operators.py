"""Operators' certificates: who gets which, and by what."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from foundation.faults import Fault
from foundation.identifiers import Kind, SpiffeId
from foundation.leaf import spiffe_id
from foundation.ports import Caller
from foundation.reasons import Reason
from pki.entries import Expected
from pki.revocation_reason import RevocationReason
from tests.support.site import ACTOR, TRUST_DOMAIN, Site, attested

ADMIN = SpiffeId(TRUST_DOMAIN, Kind.OPERATOR, "admin")
BOB = SpiffeId(TRUST_DOMAIN, Kind.OPERATOR, "bob")


def request(key: ec.EllipticCurvePrivateKey | None = None, name: str = "eve") -> bytes:
    """A certificate request that asks for more than it gets."""
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    wanted = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://{TRUST_DOMAIN}/operator/{name}")])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject).add_extension(wanted, False)
    return builder.sign(key or ec.generate_private_key(ec.SECP256R1()), hashes.SHA256()).public_bytes(Encoding.DER)


def caller(identity: SpiffeId, serial: str, via: str = "certificate") -> Caller:
    return Caller(identity, ("viewer",), via, serial)


def leaf(answer: bytes) -> x509.Certificate:
    return x509.load_pem_x509_certificates(json.loads(answer)["pem"].encode())[0]


async def newest(site: Site, identity: SpiffeId = ADMIN) -> str:
    return (await site.authority.inventory.get(identity)).current_serial


async def reason_of(awaited: Any) -> Reason:
    with pytest.raises(Fault) as caught:
        await awaited
    return caught.value.reason


async def test_the_inventory_names_the_certificate_and_the_request_only_the_key(site: Site) -> None:
    await site.authority.inventory.add(Expected(BOB, roles=("viewer",)), ACTOR)
    key = ec.generate_private_key(ec.SECP256R1())
    answer = await site.authority.operators.issue(BOB, request(key), ACTOR)
    certificate = leaf(answer)
    assert spiffe_id(certificate) == BOB
    assert certificate.public_key() == key.public_key()
    assert json.loads(answer)["serial"] == await newest(site, BOB)
    assert certificate.not_valid_after_utc.timestamp() == json.loads(answer)["not_after"] == site.clock.now() + 8 * 3600
    assert json.loads(answer)["pem"].count("BEGIN CERTIFICATE") == 2
    told = [event for event in site.audit.events if event.kind == "certificate.issued"][-1]
    assert (told.actor, told.subject, told.detail["profile"]) == (ACTOR, str(BOB), "operator")


async def test_who_is_not_expected_or_shut_out_gets_none(site: Site) -> None:
    assert await reason_of(site.authority.operators.issue(BOB, request(), ACTOR)) is Reason.INVENTORY_UNKNOWN
    await site.authority.inventory.add(Expected(BOB), ACTOR)
    await site.authority.inventory.quarantine(BOB, ACTOR)
    assert await reason_of(site.authority.operators.issue(BOB, request(), ACTOR)) is Reason.INVENTORY_STATE
    await site.authority.revocations.revoke_identity(BOB, RevocationReason.UNSPECIFIED, ACTOR)
    assert await reason_of(site.authority.operators.issue(BOB, request(), ACTOR)) is Reason.INVENTORY_STATE


async def test_an_operator_with_a_tpm_does_not_come_back_without_it(site: Site) -> None:
    await site.authority.inventory.add(Expected(BOB, ek_sha256=attested(site.clock, "bob").ek_sha256), ACTOR)
    assert await reason_of(site.authority.operators.issue(BOB, request(), ACTOR)) is Reason.ATTESTATION_REQUIRED


@pytest.mark.parametrize(
    "spoil", [lambda raw: b"", lambda raw: raw[:-1], lambda raw: raw + b"\0", lambda raw: b"\x30\0"]
)
async def test_a_request_that_proves_nothing(site: Site, spoil: Any) -> None:
    assert await reason_of(site.authority.operators.issue(ADMIN, spoil(request()), ACTOR)) is Reason.CSR_MALFORMED


async def test_a_request_signed_by_another_key(site: Site) -> None:
    mine, other = request(), request()
    signature = x509.load_der_x509_csr(other).signature
    forged = mine.replace(x509.load_der_x509_csr(mine).signature, signature)
    if len(forged) != len(mine):
        forged = mine[:-1] + bytes([mine[-1] ^ 1])
    assert await reason_of(site.authority.operators.issue(ADMIN, forged, ACTOR)) is Reason.CSR_MALFORMED


async def test_a_weak_key_is_not_certified(site: Site) -> None:
    weak = request(ec.generate_private_key(ec.SECP192R1()))
    assert await reason_of(site.authority.operators.issue(ADMIN, weak, ACTOR)) is Reason.WEAK_KEY


async def test_the_newest_certificate_renews(site: Site) -> None:
    first = await newest(site)
    answer = await site.authority.operators.renew(caller(ADMIN, first), request())
    assert spiffe_id(leaf(answer)) == ADMIN
    second = await newest(site)
    assert second == json.loads(answer)["serial"] != first
    await site.authority.operators.renew(caller(ADMIN, second), request())


async def test_an_older_certificate_does_not_and_that_is_on_record(site: Site) -> None:
    first = await newest(site)
    await site.authority.operators.renew(caller(ADMIN, first), request())
    late = site.authority.operators.renew(caller(ADMIN, first), request())
    assert await reason_of(late) is Reason.CERTIFICATE_SUPERSEDED
    (told,) = [event for event in site.audit.events if event.kind == "renew.refused"]
    assert (told.actor, told.reason, told.detail["serial"]) == (str(ADMIN), "certificate_superseded", first)


async def test_asked_again_with_the_same_key_the_answer_is_the_same(site: Site) -> None:
    key, first = ec.generate_private_key(ec.SECP256R1()), await newest(site)
    answer = await site.authority.operators.renew(caller(ADMIN, first), request(key))
    assert await site.authority.operators.renew(caller(ADMIN, first), request(key)) == answer
    issued = await site.authority.operators.issue(ADMIN, request(key), ACTOR)
    assert issued != answer
    assert await site.authority.operators.issue(ADMIN, request(key), ACTOR) == issued


async def test_only_operators_renew_so_and_none_by_a_jwt_or_a_socket(site: Site) -> None:
    node = await site.expect()
    serial = (await site.issue(node)).serial
    renew = site.authority.operators.renew
    assert await reason_of(renew(caller(node, serial), request())) is Reason.KIND_NOT_ALLOWED
    for via in ("jwt", "socket"):
        wrong = caller(ADMIN, await newest(site), via)
        assert await reason_of(renew(wrong, request())) is Reason.KIND_NOT_ALLOWED


async def test_who_was_shut_out_meanwhile_does_not_renew(site: Site) -> None:
    serial = await newest(site)
    await site.authority.inventory.quarantine(ADMIN, ACTOR)
    assert await reason_of(site.authority.operators.renew(caller(ADMIN, serial), request())) is Reason.INVENTORY_STATE
