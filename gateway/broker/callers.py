"""Whose streams a relay passes on: known by the certificates that they proved to who passes them on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from foundation.faults import Fault
from foundation.reasons import Reason
from gateway.proxy.identify import Caller, identify

MAX_KNOWN = 4096


class Callers:
    """Those of one relay, each looked at once."""

    def __init__(self, trust_domain: str, check: Callable[[bytes], None]) -> None:
        """`check` raises `Fault` for a certificate (DER) that cannot be."""
        self._trust_domain = trust_domain
        self._check = check
        self._known: dict[bytes, Caller] = {}

    def of(self, certificate: bytes) -> Caller:
        """Raises `Fault(CLIENT_CERTIFICATE_REQUIRED | CLIENT_CERTIFICATE_INVALID)`."""
        known = self._known.get(certificate)
        if known is None:
            peer = identify(certificate or None, self._trust_domain)
            self._check(certificate)
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            known = self._known[certificate] = Caller.of(peer)
        return known


def check_issued(certificate: bytes, authorities: Sequence[x509.Certificate], now: float) -> None:
    """That one of `authorities`, which are ours, signed `certificate` (DER) and is valid at `now` (seconds since the
    Unix epoch). Raises `Fault(CLIENT_CERTIFICATE_INVALID)`."""
    leaf = x509.load_der_x509_certificate(certificate)
    for authority in authorities:
        if authority.subject != leaf.issuer or now >= authority.not_valid_after_utc.timestamp():
            continue
        try:
            leaf.verify_directly_issued_by(authority)
        except (ValueError, TypeError, InvalidSignature):
            continue
        return
    raise Fault(Reason.CLIENT_CERTIFICATE_INVALID, "no authority of ours signed it")


def proven_here(certificate: bytes) -> None:
    """Nothing to check: TLS did, in a process of this gateway."""
