"""TLS to upstreams: which roots an upstream must chain to, who it must be, and the certificate that we prove.

Laws held here:
- an upstream with an expected SPIFFE ID is known by that alone (X509-SVID §4): one URI in the leaf that it proved, and
  the one in policy;
- the key that we prove is the gateway's own and never leaves it; policy says whether it is used, never which it is;
- a renewed certificate, or a CA file that changed, is in force for the next connection.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import NamedTuple, Protocol

from cryptography import x509

from foundation.clock import Clock
from foundation.faults import Fault
from foundation.reasons import Reason
from foundation.tls import HTTP_1_1, KeyPair, client_context, load_pair
from policies.upstreams import UpstreamTls

RECHECKED_EVERY = 10.0  # seconds after which a CA file is looked at again
MAX_CERTIFICATE_BYTES = 16 << 10


class OwnCertificate(Protocol):
    """The gateway's certificate and its fleet's root, as files; `generation` rises with each renewal."""

    @property
    def calling(self) -> KeyPair: ...

    @property
    def root(self) -> Path: ...

    @property
    def generation(self) -> int: ...


class _Made(NamedTuple):
    """A context, and what it was made of: the generation of our certificate, the CA file's stamp. `until`: the file is
    not looked at again before then (monotonic seconds)."""

    context: ssl.SSLContext
    generation: int
    stamp: object
    until: float


class UpstreamTrust:
    """The contexts for dialling. `own` is None where the gateway has no certificate to prove, in tests."""

    def __init__(self, clock: Clock, own: OwnCertificate | None = None) -> None:
        self._clock = clock
        self._own = own
        self._made: dict[UpstreamTls, _Made] = {}

    def context(self, tls: UpstreamTls) -> ssl.SSLContext:
        """The context for a new connection. Raises `Fault(UPSTREAM_UNTRUSTED)` when a file cannot be used."""
        known, now = self._made.get(tls), self._clock.monotonic()
        generation = self._own.generation if self._own is not None else 0
        if known is not None and known.generation == generation and now < known.until:
            return known.context
        stamp = _stamp(self._roots_file(tls))
        is_same = known is not None and (known.generation, known.stamp) == (generation, stamp)
        context = known.context if known is not None and is_same else self._make(tls)
        self._made[tls] = _Made(context, generation, stamp, now + RECHECKED_EVERY)
        return context

    def _roots_file(self, tls: UpstreamTls) -> Path | None:
        if not tls.fleet:
            return Path(tls.ca_file) if tls.ca_file else None
        if self._own is None:
            raise _unusable("this gateway knows no root of a fleet")
        return self._own.root

    def _make(self, tls: UpstreamTls) -> ssl.SSLContext:
        pair = None
        if tls.client_certificate:
            if self._own is None:
                raise _unusable("this gateway has no certificate of its own")
            pair = self._own.calling
        roots = self._roots_file(tls)
        try:
            if roots is None:
                return _system_context(pair)
            return client_context(roots.read_bytes(), pair=pair, check_hostname=not tls.spiffe_id)
        except (OSError, Fault) as error:  # callers need not know our files
            raise _unusable(f"{roots}: {error}") from error


def check_spiffe_id(certificate: bytes | None, expected: str) -> None:
    """Whether the leaf (DER) that an upstream proved names `expected` and nothing else. Raises
    `Fault(UPSTREAM_UNTRUSTED)`."""
    if certificate is None or len(certificate) > MAX_CERTIFICATE_BYTES:
        raise Fault(Reason.UPSTREAM_UNTRUSTED, internal="no certificate, or one that is too large")
    try:
        extensions = x509.load_der_x509_certificate(certificate).extensions
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except (ValueError, TypeError, x509.ExtensionNotFound, x509.DuplicateExtension):
        raise Fault(Reason.UPSTREAM_UNTRUSTED, internal="the certificate names no SPIFFE ID") from None
    if uris != [expected]:
        raise Fault(Reason.UPSTREAM_UNTRUSTED, internal=f"the upstream is {', '.join(uris[:4]) or 'nobody'}")


def _stamp(path: Path | None) -> object:
    if path is None:
        return None
    try:
        found = path.stat()
    except OSError as error:
        raise _unusable(f"{path}: {error.strerror}") from error
    return (found.st_ino, found.st_mtime_ns, found.st_size)


def _system_context(pair: KeyPair | None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(list(HTTP_1_1))
    if pair is not None:
        load_pair(context, pair)
    return context


def _unusable(internal: str) -> Fault:
    return Fault(Reason.UPSTREAM_UNTRUSTED, internal=internal)
