"""What a snapshot says of one identity and its certificate, and why that may refuse it: rules that rest on no policy.

One order of checks for the data plane, the API's authorizer and the directory, so that none of them can leave one out:
 1. neither the identity nor its certificate is revoked, nor is the CA withdrawn that issued that
 2. the certificate is valid now
 3. the identity is known, active and not in quarantine
 4. its last attestation did not fail
"""

from __future__ import annotations

from typing import NamedTuple

from foundation.identifiers import SpiffeId
from foundation.identity import AttestationClass, IdentityRecord, Posture, State, Verdict
from foundation.reasons import Reason
from gateway.snapshot import Snapshot

NO_POSTURE = Posture(AttestationClass.NONE, Verdict.PASSED)
_BY_STATE = {
    State.EXPECTED: Reason.IDENTITY_UNKNOWN,  # never enrolled: nobody can bear its name
    State.QUARANTINED: Reason.IDENTITY_QUARANTINED,
    State.REVOKED: Reason.IDENTITY_REVOKED,
}


class Standing(NamedTuple):
    """The facts of one identity in one snapshot. `record` is None when the inventory does not know it; `revoked` says
    that it or its certificate is."""

    record: IdentityRecord | None
    posture: Posture
    revoked: bool


def standing_of(snapshot: Snapshot, identity: SpiffeId, serial: str, issuer: str = "") -> Standing:
    """What `snapshot` says of `identity` and its certificate `serial`, signed by the key that `issuer` identifies (both
    lower-case hex)."""
    record = snapshot.inventory.get(identity)
    revoked = snapshot.is_revoked(identity, serial, issuer)
    return Standing(record, snapshot.postures.get(identity, NO_POSTURE), revoked)


def refusal_by_standing(standing: Standing, not_before: float, not_after: float, now: float) -> Reason | None:
    """Steps 1 to 4: why nothing at all may be done at `now`, or None. The certificate is valid from `not_before` until
    `not_after`; all in seconds since the Unix epoch."""
    record = standing.record
    if standing.revoked:  # 1
        return Reason.IDENTITY_REVOKED
    if now >= not_after:  # 2
        return Reason.CERTIFICATE_EXPIRED
    if now < not_before:  # 2
        return Reason.CERTIFICATE_NOT_YET_VALID
    if record is None:  # 3
        return Reason.IDENTITY_UNKNOWN
    if record.state is not State.ACTIVE:  # 3
        return _BY_STATE[record.state]
    return Reason.POSTURE_FAILED if standing.posture.verdict is Verdict.FAILED else None  # 4
