"""Who calls an API: proven by the connection, for every request anew, never by a header's word.

Three ways: the client certificate whose key the TLS handshake proved; a JWT bound to that certificate
(`foundation.bearer`), which may only say with which roles its holder acts; the peer credentials of a Unix socket.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

from aiohttp import web
from cryptography import x509

from foundation.bearer import BearerVerifier
from foundation.clock import Clock
from foundation.faults import Fault
from foundation.identifiers import Kind, SpiffeId
from foundation.leaf import issuer_key, spiffe_id
from foundation.listening import peer_uid
from foundation.ports import Caller, IdentityDirectory
from foundation.reasons import Reason
from foundation.tls import peer_certificate

ROLES = ("viewer", "operator", "security", "break-glass")


class CertificateCallers:
    """Identifies callers of a listener that asks for client certificates."""

    def __init__(
        self, trust_domain: str, directory: IdentityDirectory, clock: Clock, bearer: BearerVerifier | None = None
    ) -> None:
        self._trust_domain = trust_domain
        self._directory = directory
        self._clock = clock
        self._bearer = bearer

    async def identify(self, request: web.BaseRequest) -> Caller:
        """Raises `Fault` with what is wrong with the certificate, its identity's state, or the JWT."""
        leaf = peer_certificate(request.transport)
        if leaf is None:
            raise Fault(Reason.CLIENT_CERTIFICATE_REQUIRED)
        identity, serial, not_after, issuer = self._read(leaf)
        record = await self._directory.standing(identity, serial)
        if "Authorization" not in request.headers:
            return Caller(identity, record.roles, "certificate", serial, not_after, issuer)
        return Caller(identity, self._roles(request, identity, leaf), "jwt", serial, not_after, issuer)

    def _read(self, leaf: bytes) -> tuple[SpiffeId, str, float, str]:
        # The handshake compared validity once; a connection may outlive it.
        certificate = x509.load_der_x509_certificate(leaf)
        now, not_after = self._clock.now(), certificate.not_valid_after_utc.timestamp()
        if now >= not_after:
            raise Fault(Reason.CERTIFICATE_EXPIRED)
        if now < certificate.not_valid_before_utc.timestamp():
            raise Fault(Reason.CERTIFICATE_NOT_YET_VALID)
        identity = spiffe_id(certificate)
        if identity.trust_domain != self._trust_domain:
            raise Fault(Reason.CLIENT_CERTIFICATE_INVALID, "it is of another trust domain")
        return identity, f"{certificate.serial_number:x}", not_after, issuer_key(certificate.extensions)

    def _roles(self, request: web.BaseRequest, identity: SpiffeId, leaf: bytes) -> tuple[str, ...]:
        headers = request.headers.getall("Authorization")
        if self._bearer is None:
            raise Fault(Reason.JWT_INVALID, "no issuer of JWTs is configured", field="authorization")
        scheme, _, token = headers[0].partition(" ")
        if len(headers) != 1 or scheme.lower() != "bearer":
            raise Fault(Reason.JWT_INVALID, "expected one `Bearer` token", field="authorization")
        if identity.kind is not Kind.OPERATOR:
            raise Fault(Reason.JWT_INVALID, "JWTs are for operators", field="authorization")
        return self._bearer.roles(token, identity, leaf, self._clock.now())


class LocalCallers:
    """Identifies callers of a Unix socket: the machine's root, or the user that this process runs as. Both hold every
    role, for either could read our files instead."""

    def __init__(self, trust_domain: str, peer_uid: Callable[[web.BaseRequest], int] | None = None) -> None:
        self._trust_domain = trust_domain
        self._peer_uid = peer_uid or peer_uid_of

    async def identify(self, request: web.BaseRequest) -> Caller:
        """Raises `Fault(KIND_NOT_ALLOWED)` for any other user."""
        uid = self._peer_uid(request)
        if uid not in {0, os.geteuid()}:
            raise Fault(Reason.KIND_NOT_ALLOWED, "the local socket is for root and the service's own user")
        return Caller(SpiffeId(self._trust_domain, Kind.OPERATOR, f"local-uid-{uid}"), ROLES, "socket")


def peer_uid_of(request: web.BaseRequest) -> int:
    """The user at the other end of a Unix socket, as the kernel recorded it at connect (SO_PEERCRED)."""
    connection = request.transport.get_extra_info("socket") if request.transport else None
    if connection is None or connection.family != socket.AF_UNIX:
        raise Fault(Reason.CLIENT_CERTIFICATE_REQUIRED)
    return peer_uid(connection)
