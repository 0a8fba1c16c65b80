"""Makers' issuers whose path to a pinned root was verified: the next TPM of the same maker costs one signature less.

A maker's chain is the same for very many TPMs, and verifying it is most of what an enrolment computes. What is
remembered here changes no answer:

- it is looked up by all certificates that came along, in their order, and only for the roots it was made for;
- it holds until the next instant at which one of those certificates, or a root, begins or ends: between two such
  instants the same certificates are valid, so the same path leads to the same root;
- the EK certificate itself, and its issuer's right to issue it, are verified every time, with the issuer as the anchor;
- name constraints of an authority speak about the EK certificate too: where there are any, nothing is remembered.

No clock, no file: the time comes in. The number of chains is bounded.
"""

from __future__ import annotations

import bisect
from collections import OrderedDict
from dataclasses import dataclass

from cryptography import x509

from foundation.identity import AttestationClass
from pki.tpm.endorsement import MakerTrust, issued_by, verified_path

MAX_CHAINS = 256
_Chain = tuple[x509.Certificate, ...]


@dataclass(frozen=True, slots=True)
class _Known:
    """An issuer of EK certificates, from `begins` until before `ends`, in seconds since the Unix epoch."""

    issuer: x509.Certificate
    attestation: AttestationClass
    begins: float
    ends: float


class KnownIssuers:
    """Classifies as `MakerTrust` does, and remembers."""

    def __init__(self, trust: MakerTrust) -> None:
        self._trust = trust
        self._known: OrderedDict[_Chain, _Known] = OrderedDict()

    def classify(self, certificate: x509.Certificate, chain: _Chain, now: float, path: str) -> AttestationClass:
        """As `MakerTrust.classify`."""
        known = self._known.get(chain)
        if known is not None and known.begins <= now < known.ends and issued_by(certificate, known.issuer, now):
            self._known.move_to_end(chain)
            return known.attestation
        attestation = self._trust.classify(certificate, chain, now, path)
        if chain:
            self._remember(certificate, chain, attestation, now)
        return attestation

    def _remember(
        self, certificate: x509.Certificate, chain: _Chain, attestation: AttestationClass, now: float
    ) -> None:
        authorities = (*chain, *self._trust.hardware, *self._trust.virtual)
        if any(_constrains_names(authority) for authority in authorities):
            return
        found = verified_path(certificate, chain, self._trust.roots(attestation), now)
        if len(found) < 2:
            return
        self._known[chain] = _Known(found[1], attestation, *_unchanged(authorities, now))
        self._known.move_to_end(chain)
        if len(self._known) > MAX_CHAINS:
            self._known.popitem(last=False)

    def __len__(self) -> int:
        return len(self._known)


def _unchanged(certificates: _Chain, now: float) -> tuple[float, float]:
    """The time around `now` in which none of `certificates` begins or ends. The second of an end still belongs to the
    certificate (RFC 5280 §4.1.2.5), so the change is just behind it."""
    edges = [float("-inf"), float("inf")]
    for certificate in certificates:
        edges += [certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()]
        edges.append(edges[-1] + 1)
    edges.sort()
    place = bisect.bisect_right(edges, now)
    return edges[place - 1], edges[place]


def _constrains_names(certificate: x509.Certificate) -> bool:
    try:
        certificate.extensions.get_extension_for_class(x509.NameConstraints)
    except x509.ExtensionNotFound:
        return False
    return True
