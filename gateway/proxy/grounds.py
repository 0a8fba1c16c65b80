"""What a refusal by fixed rule rests on, for the record: which fact, and until when. Pure values.

Names are those that `policies.explain` has sentences for. Times are seconds since the Unix epoch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from foundation.faults import Fault
from foundation.identity import Posture
from foundation.reasons import Reason
from gateway.proxy.identify import Peer
from gateway.snapshot import Snapshot
from policies.model import Permit

MAX_TEXT = 256


def grounds(
    reason: Reason, snapshot: Snapshot, peer: Peer, posture: Posture, attested_until: float
) -> Mapping[str, Any]:
    """The facts behind `gateway.proxy.decide.refusal_by_fixed_rule`."""
    match reason:
        case Reason.IDENTITY_REVOKED:
            return _revoked(snapshot, peer)
        case Reason.IDENTITY_QUARANTINED:
            return _state(snapshot, peer)
        case Reason.CERTIFICATE_EXPIRED:
            return {"serial": peer.serial, "certificate_ended": peer.not_after}
        case Reason.CERTIFICATE_NOT_YET_VALID:
            return {"serial": peer.serial, "certificate_begins": peer.not_before}
        case Reason.POSTURE_FAILED:
            return {"attestation": posture.attestation.value}
        case Reason.ATTESTATION_EXPIRED:
            return {"attestation_ended": attested_until}
        case _:
            return {}


def no_request(fault: Fault) -> Mapping[str, Any]:
    """The facts behind the refusal of what is no request, or has no route."""
    return {"detail": fault.detail[:MAX_TEXT]} if fault.detail else {}


def unmet(permit: Permit) -> Mapping[str, Any]:
    """The facts behind an obligation that could not be met."""
    rate = next((each.parameters for each in permit.obligations if each.kind == "rate"), {})
    known = {name: rate[name] for name in ("per_second", "burst") if name in rate}
    return {"grant": permit.grant, **known}


def _revoked(snapshot: Snapshot, peer: Peer) -> Mapping[str, Any]:
    revocation = snapshot.revoked_identities.get(peer.id) or snapshot.revoked_serials.get(peer.serial)
    if revocation is None:
        return _state(snapshot, peer)
    return {
        "serial": revocation.serial,  # empty: the identity, with all its certificates
        "revocation": revocation.number,
        "revoked_at": revocation.at,
        "revoked_for": revocation.reason[:MAX_TEXT],
    }


def _state(snapshot: Snapshot, peer: Peer) -> Mapping[str, Any]:
    record = snapshot.inventory.get(peer.id)
    return {} if record is None else {"state": record.state.value}
