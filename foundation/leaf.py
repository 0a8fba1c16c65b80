"""What a leaf certificate says, for whoever reads one."""

from __future__ import annotations

from cryptography import x509

from foundation.faults import Fault
from foundation.identifiers import SpiffeId
from foundation.reasons import Reason


def issuer_key(extensions: x509.Extensions) -> str:
    """The identifier of the key that signed the certificate (RFC 5280 §4.2.1.1) in lower-case hex; empty when it names
    none."""
    try:
        authority = extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    except x509.ExtensionNotFound:
        return ""
    return (authority.key_identifier or b"").hex()


def spiffe_id(certificate: x509.Certificate) -> SpiffeId:
    """The identity in a certificate: the only URI among its names (X509-SVID §2). Raises
    `Fault(CLIENT_CERTIFICATE_INVALID)`."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        (uri,) = names.get_values_for_type(x509.UniformResourceIdentifier)
        return SpiffeId.parse(uri)
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension, Fault):
        raise Fault(Reason.CLIENT_CERTIFICATE_INVALID, "it does not name one SPIFFE ID") from None
