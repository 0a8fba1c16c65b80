"""Who a connection's client is: read from the certificate whose key it proved in the handshake, once a connection.

Whatever else the client sent along (a longer chain, a victim's certificate as filler) is not looked at
(GHSA-mrpr-756c-xm47), and no header ever is.
"""

from __future__ import annotations

from dataclasses import dataclass

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from foundation.faults import Fault
from foundation.identifiers import SpiffeId
from foundation.leaf import issuer_key
from foundation.reasons import Reason

MAX_CERTIFICATE_BYTES = 16 << 10


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Peer:
    """A proven client, one connection's: each is equal to itself alone. `serial` is lower-case hex; times are seconds
    since the Unix epoch; `certificate` is DER; `issuer` is the identifier of the issuing CA's key (RFC 5280 §4.2.1.1)
    in lower-case hex."""

    id: SpiffeId
    serial: str
    not_before: float
    not_after: float
    certificate: bytes
    issuer: str = ""


@dataclass(frozen=True, slots=True)
class Caller:
    """A connection's client in the forms that each of its exchanges needs: `text` is its SPIFFE ID, `line` the field
    that tells an upstream, ready to be sent. `source` is the address and port that its connection comes from; it proves
    nothing."""

    peer: Peer
    text: str
    line: bytes
    source: tuple[str, int] | None = None

    @classmethod
    def of(cls, peer: Peer, source: tuple[str, int] | None = None) -> Caller:
        text = str(peer.id)
        return cls(peer, text, b"x-sallyport-identity: %b\r\n" % text.encode("ascii"), source)


def identify(certificate: bytes | None, trust_domain: str) -> Peer:
    """The identity in the proven leaf `certificate` (DER), whose chain TLS has verified.

    Steps: 1 there is one; 2 it is a leaf for client authentication (RFC 5280 §4.2.1.9, §4.2.1.12); 3 it names one URI,
    which is a SPIFFE ID (X509-SVID §2) of `trust_domain`. Raises `Fault(CLIENT_CERTIFICATE_REQUIRED |
    CLIENT_CERTIFICATE_INVALID)`.
    """
    if certificate is None:  # 1
        raise Fault(Reason.CLIENT_CERTIFICATE_REQUIRED)
    if len(certificate) > MAX_CERTIFICATE_BYTES:
        raise _invalid("the certificate is too large")
    try:
        leaf = x509.load_der_x509_certificate(certificate)
        extensions = leaf.extensions
    except (ValueError, TypeError, x509.DuplicateExtension) as error:
        raise _invalid("the certificate does not parse") from error
    _check_leaf(extensions)  # 2
    identity = _spiffe_id(extensions, trust_domain)  # 3
    return Peer(
        id=identity,
        serial=format(leaf.serial_number, "x"),
        not_before=leaf.not_valid_before_utc.timestamp(),
        not_after=leaf.not_valid_after_utc.timestamp(),
        certificate=certificate,
        issuer=issuer_key(extensions),
    )


def _check_leaf(extensions: x509.Extensions) -> None:
    try:
        if extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            raise _invalid("a CA's certificate proves no client")
    except x509.ExtensionNotFound:
        pass
    try:
        usages = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        raise _invalid("the certificate is not for client authentication") from None
    if ExtendedKeyUsageOID.CLIENT_AUTH not in usages:
        raise _invalid("the certificate is not for client authentication")


def _spiffe_id(extensions: x509.Extensions, trust_domain: str) -> SpiffeId:
    try:
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        raise _invalid("the certificate names no SPIFFE ID") from None
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:
        raise _invalid("the certificate does not name exactly one URI")
    try:
        identity = SpiffeId.parse(uris[0])
    except Fault as fault:
        raise _invalid(fault.detail) from None
    if identity.trust_domain != trust_domain:
        raise _invalid("the certificate is of another trust domain")
    return identity


def _invalid(detail: str) -> Fault:
    return Fault(Reason.CLIENT_CERTIFICATE_INVALID, detail)
