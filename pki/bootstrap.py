"""Where trust begins: `initialise` makes root, issuing CA, policy signing key, the listeners' certificate and the first
operator's.

What lies in the folder afterwards:

| file | what |
|---|---|
| root.pem, root.crl | the root, ten years, and its CRL: for everybody |
| root.key, root.passphrase | the root's key, encrypted: for the next issuing CA; keep both offline, apart |
| issuing.pem, issuing.key | the issuing CA, one year, and its key, encrypted |
| issuing.passphrase | what opens that, unless the settings keep it elsewhere |
| policy.pub, policy.key | the policy signing key: gateways take the one, the publisher the other |
| server.pem, server.key | chain and key of the listeners |
| calling.pem, calling.key | where the machine is a gateway too: chain and key that it proves to upstreams, 24 hours |
| operator.pem, operator.key | the first operator, 24 hours |

A run that was stopped is taken up again where it stopped; one that was finished is refused.
"""

from __future__ import annotations

import base64
import datetime
import secrets
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import NameOID
from sqlalchemy import insert, select

from foundation.clock import Clock
from foundation.faults import Fault
from foundation.files import make_private_folder, write_atomic, write_secret
from foundation.identifiers import Kind, SpiffeId
from foundation.ports import AuditEvent, AuditLog
from foundation.reasons import Reason
from foundation.storage.database import Database
from pki.authority import Authority
from pki.entries import Expected
from pki.issue import IssuedCertificate, IssueRequest, random_serial
from pki.profile import BACKDATED_SECONDS, Issuer, ProfileName, key_identifier
from pki.revocation import crl_builder
from pki.settings import AuthoritySettings
from pki.signer import Draft, FileSigner, close_key, hash_for, seal_certificate, seal_crl
from pki.tables import authority_facts

DAY = 24 * 3600
ROOT_SECONDS = 3652 * DAY
ISSUING_SECONDS = 365 * DAY
OPERATOR_SECONDS = DAY
OPERATOR_ROLES = ("operator", "security", "viewer")
_ACTOR = "init"
_DONE = "initialised"


@dataclass(frozen=True, slots=True)
class Initialised:
    """What `initialise` made. `root_sha256` is of the root's DER: write it down, tokens and agents trust it."""

    root_sha256: bytes
    folder: Path
    operator: SpiffeId


async def initialise(
    settings: AuthoritySettings, database: Database, audit: AuditLog, clock: Clock, *, operator: str = "admin"
) -> Initialised:
    """Make the authority. Raises `Fault(CONFLICT)` when there is one, and whatever files and database raise."""
    await database.migrate()
    if await _fact(database, _DONE) is not None:
        raise Fault(Reason.CONFLICT, "the authority is initialised already", field=str(settings.folder))
    make_private_folder(settings.folder)
    await audit.append(AuditEvent("authority.initialised", _ACTOR, settings.trust_domain))
    if not (settings.folder / "issuing.pem").exists():
        await _make_ca(settings, int(clock.now()))
    if not (settings.folder / "policy.pub").exists():
        _make_policy_key(settings.folder)
    authority = await Authority.open(settings, database, audit, clock)
    await renew_server_certificate(authority, settings, clock, actor=_ACTOR)
    first = await _first_operator(authority, settings, operator)
    await _keep_facts(database, settings, clock)
    return Initialised(authority.root_sha256, settings.folder, first.identity)


async def renew_server_certificate(
    authority: Authority, settings: AuthoritySettings, clock: Clock, *, actor: str = "authority"
) -> bool:
    """Make `server.pem` and `server.key` anew when they are missing, signed by another key than the issuing CA's, name
    other names than the settings, or have less than a third of their life left. Returns whether they were. The key is
    replaced first: a listener that reads in between finds a pair that does not fit, and keeps the one it has."""
    return await _renew(authority, settings, clock, "server", ProfileName.SERVER, actor)


async def renew_calling_certificate(
    authority: Authority, settings: AuthoritySettings, clock: Clock, *, actor: str = "authority"
) -> bool:
    """The same for `calling.pem` and `calling.key`: what the listeners show is for servers alone."""
    return await _renew(authority, settings, clock, "calling", ProfileName.GATEWAY, actor)


async def _renew(
    authority: Authority, settings: AuthoritySettings, clock: Clock, name: str, profile: ProfileName, actor: str
) -> bool:
    if _certificate_serves(settings, name, clock.now()):
        return False
    identity = settings.server_identity
    await _expect(authority, Expected(identity), actor)
    key = ec.generate_private_key(ec.SECP256R1())
    request = IssueRequest(identity, profile, _spki(key), actor, names=settings.server_names)
    _write_pair(settings.folder, name, key, await authority.issue(request))
    return True


async def _first_operator(authority: Authority, settings: AuthoritySettings, name: str) -> IssuedCertificate:
    identity = SpiffeId(settings.trust_domain, Kind.OPERATOR, name)
    await _expect(authority, Expected(identity, roles=OPERATOR_ROLES), _ACTOR)
    key = ec.generate_private_key(ec.SECP256R1())
    request = IssueRequest(identity, ProfileName.OPERATOR, _spki(key), _ACTOR, lifetime=OPERATOR_SECONDS)
    issued = await authority.issue(request)
    _write_pair(settings.folder, "operator", key, issued)
    return issued


async def _expect(authority: Authority, expected: Expected, actor: str) -> None:
    try:
        await authority.inventory.add(expected, actor)
    except Fault as fault:
        if fault.reason is not Reason.CONFLICT:
            raise


async def _make_ca(settings: AuthoritySettings, now: int) -> None:
    """Root and issuing CA. `issuing.pem` is written last: while it is missing, all of it is made anew."""
    root_key, issuing_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root_name = _name(f"{settings.trust_domain} root")
    root = ca_builder(root_name, root_name, root_key.public_key(), root_key.public_key(), now, ROOT_SECONDS, None).sign(
        root_key, hash_for(root_key.curve)
    )
    signer = FileSigner(root, root_key)
    issuing_name = _name(f"{settings.trust_domain} issuing")
    draft = ca_builder(
        issuing_name, root_name, issuing_key.public_key(), root_key.public_key(), now, ISSUING_SECONDS, 0
    )
    issuing = await seal_certificate(signer, Draft(root).certificate(draft))
    crl = await seal_crl(signer, Draft(root).crl(crl_builder(Issuer.of(root), 1, now, ISSUING_SECONDS)))

    folder = settings.folder
    _write_ca_key(folder / "root.key", root_key, _new_passphrase(folder / "root.passphrase"))
    _write_ca_key(folder / "issuing.key", issuing_key, _issuing_passphrase(settings))
    write_atomic(folder / "root.pem", _pem(root))
    write_atomic(folder / "root.crl", crl.public_bytes(serialization.Encoding.DER))
    write_atomic(folder / "issuing.pem", _pem(issuing))


def ca_builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    above: CertificatePublicKeyTypes,
    now: int,
    lifetime: int,
    path_length: int | None,
) -> x509.CertificateBuilder:
    """A CA certificate by RFC 5280 §4.2.1: critical basic constraints and key usage, and both key identifiers."""
    identifier, above_identifier = key_identifier(_der(key)), key_identifier(_der(above))
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(random_serial())
        .not_valid_before(_instant(now - BACKDATED_SECONDS))
        .not_valid_after(_instant(now + lifetime))
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), True)
        .add_extension(CA_USAGE, True)
        .add_extension(x509.SubjectKeyIdentifier(identifier), False)
        .add_extension(x509.AuthorityKeyIdentifier(above_identifier, None, None), False)
    )


CA_USAGE = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


def _make_policy_key(folder: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    write_secret(folder / "policy.key", _plain_key(key))
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    write_atomic(folder / "policy.pub", public)


def _certificate_serves(settings: AuthoritySettings, name: str, now: float) -> bool:
    try:
        raw = (settings.folder / f"{name}.pem").read_bytes()
        certificate = x509.load_pem_x509_certificates(raw)[0]
        certificate.verify_directly_issued_by(
            x509.load_pem_x509_certificate((settings.folder / "issuing.pem").read_bytes())
        )
    except (OSError, ValueError, InvalidSignature):
        return False
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    found = {*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))}
    start, end = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
    return found == set(settings.server_names) and start <= now and end - now > (end - start) / 3


def _issuing_passphrase(settings: AuthoritySettings) -> bytes:
    """The one that the settings lead to, made where it is missing. A credential is systemd's to make."""
    if settings.passphrase_credential or settings.issuing_passphrase_file.exists():
        return settings.read_passphrase()
    return _new_passphrase(settings.issuing_passphrase_file)


def _new_passphrase(path: Path) -> bytes:
    passphrase = base64.b64encode(secrets.token_bytes(32))
    write_secret(path, passphrase + b"\n")
    return passphrase


def _write_ca_key(path: Path, key: ec.EllipticCurvePrivateKey, passphrase: bytes) -> None:
    write_secret(path, close_key(key, passphrase))


def _write_pair(folder: Path, name: str, key: ec.EllipticCurvePrivateKey, issued: IssuedCertificate) -> None:
    write_secret(folder / f"{name}.key", _plain_key(key))
    # The root is no part of what a TLS server or client sends (RFC 8446 §4.4.2).
    chain = b"".join(_pem(x509.load_der_x509_certificate(der)) for der in issued.chain[:-1])
    write_atomic(folder / f"{name}.pem", chain)


async def _keep_facts(database: Database, settings: AuthoritySettings, clock: Clock) -> None:
    facts = {
        "trust_domain": settings.trust_domain.encode(),
        "root": (settings.folder / "root.pem").read_bytes(),
        "policy_key": (settings.folder / "policy.pub").read_bytes(),
        _DONE: str(int(clock.now())).encode(),
    }
    async with database.transaction() as connection:
        await connection.execute(insert(authority_facts), [{"name": k, "value": v} for k, v in facts.items()])


async def _fact(database: Database, name: str) -> bytes | None:
    async with database.reading() as connection:
        value: bytes | None = await connection.scalar(
            select(authority_facts.c.value).where(authority_facts.c.name == name)
        )
    return value


def _plain_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _spki(key: ec.EllipticCurvePrivateKey) -> bytes:
    return _der(key.public_key())


def _der(key: CertificatePublicKeyTypes) -> bytes:
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])  # ub-common-name, RFC 5280 appendix A.1


def _instant(seconds: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)
