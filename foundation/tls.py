"""TLS as every listener and client of ours speaks it.

Laws held here:
- TLS 1.3 alone (RFC 8446), no compression, no session tickets: a resumed session would skip the verdict on the
  certificate (seen with Python's ssl: CVE-2025-23419 is the same class);
- one context, one regime: a context either asks every client for a certificate or asks none. Regimes never share a
  listener, for switching contexts by SNI keeps the old verify mode;
- certificates are verified by X.509's strict rules, for the purpose that they are used for, up to roots that we name:
  the system's roots are never loaded.
"""

from __future__ import annotations

import asyncio
import hashlib
import ssl
import tempfile
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from foundation.faults import Fault
from foundation.files import read_secret
from foundation.reasons import Reason

HTTP_1_1 = ("http/1.1",)
HTTP_2 = "h2"  # RFC 9113 §3.1


class KeyPair(NamedTuple):
    """PEM files: a certificate with its chain below the root, leaf first, and its unencrypted PKCS #8 key (0600). Both
    may be one file."""

    certificate: Path
    key: Path


class ServerContext(ssl.SSLContext):
    """A server's context that knows which key it answers with: `spki_sha256` is the SHA-256 of the certificate's DER
    SubjectPublicKeyInfo. Every connection leads back to its own context, so that is true per connection."""

    spki_sha256: bytes = b""


def server_context(
    pair: KeyPair, *, client_roots: bytes | None, present: bytes = b"", protocols: tuple[str, ...] = HTTP_1_1
) -> ServerContext:
    """The context of a listener. `client_roots` are CA certificates (PEM) to which every client must chain; with None
    no client is asked for a certificate. `present` is a root (PEM) to send behind the chain, for clients that know
    nothing but its hash. Raises `Fault(FILE_UNREADABLE | FILE_MODE_UNSAFE)`."""
    context = ServerContext(ssl.PROTOCOL_TLS_SERVER)
    _harden(context)
    context.options |= ssl.OP_NO_TICKET
    context.num_tickets = 0
    context.set_alpn_protocols(list(protocols))
    context.spki_sha256 = load_pair(context, pair, present)
    if client_roots is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        _load_roots(context, client_roots)
    return context


def client_context(
    roots: bytes, *, pair: KeyPair | None = None, check_hostname: bool = True, protocols: tuple[str, ...] = HTTP_1_1
) -> ssl.SSLContext:
    """The context of a client that trusts `roots` (PEM) and nothing else. A caller that turns `check_hostname` off must
    compare the server's identity itself. Raises `Fault(FILE_UNREADABLE | FILE_MODE_UNSAFE)`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _harden(context)
    context.check_hostname = check_hostname
    context.set_alpn_protocols(list(protocols))
    _load_roots(context, roots)
    if pair is not None:
        load_pair(context, pair)
    return context


def peer_certificate(transport: asyncio.BaseTransport | None) -> bytes | None:
    """The DER certificate whose key the peer proved in the handshake; None where it showed none. Whatever else the peer
    sent along is not looked at (GHSA-mrpr-756c-xm47)."""
    connection = None if transport is None else transport.get_extra_info("ssl_object")
    return None if connection is None else connection.getpeercert(binary_form=True) or None


def own_spki_sha256(transport: asyncio.BaseTransport | None) -> bytes:
    """The SHA-256 of the SPKI that this side of the connection answered with; empty where there is no TLS."""
    connection = None if transport is None else transport.get_extra_info("ssl_object")
    context = getattr(connection, "context", None)
    return context.spki_sha256 if isinstance(context, ServerContext) else b""


def spki_sha256(certificate: x509.Certificate) -> bytes:
    """The SHA-256 of the certificate's DER SubjectPublicKeyInfo (RFC 5280 §4.1.2.7)."""
    key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(key).digest()


def _harden(context: ssl.SSLContext) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.maximum_version = ssl.TLSVersion.TLSv1_3
    context.options |= ssl.OP_NO_COMPRESSION
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_STRICT


def load_pair(context: ssl.SSLContext, pair: KeyPair, present: bytes = b"") -> bytes:
    """Have `context` prove this certificate; the SHA-256 of its SPKI. `present` is as in `server_context`. Raises
    `Fault(FILE_UNREADABLE | FILE_MODE_UNSAFE)`."""
    read_secret(pair.key)  # refuses a key that others may read; OpenSSL would not
    try:
        certificates = x509.load_pem_x509_certificates(pair.certificate.read_bytes())
        chain = b"".join(each.public_bytes(Encoding.PEM) for each in certificates)  # a key beside them stays there
        with tempfile.NamedTemporaryFile() as file:  # OpenSSL reads chains from files alone
            file.write(chain + present)
            file.flush()
            # An empty passphrase: without one OpenSSL would ask at the terminal and wait.
            context.load_cert_chain(file.name, pair.key, password="")
    except (OSError, ValueError) as error:
        where = f"{pair.certificate}, {pair.key}"
        raise Fault(Reason.FILE_UNREADABLE, "not a certificate with its PKCS #8 key", field=where) from error
    return spki_sha256(certificates[0])


def _load_roots(context: ssl.SSLContext, roots: bytes) -> None:
    try:
        context.load_verify_locations(cadata=roots.decode("ascii"))
    except (ssl.SSLError, ValueError) as error:
        raise Fault(Reason.FILE_UNREADABLE, "not CA certificates in PEM", field="roots") from error
