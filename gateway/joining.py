"""`sallyport join`: this machine becomes a gateway of an authority elsewhere.

What it needs of the authority's security team: an inventory entry of the kind gateway with names, a token, and the
policy signing key's public half.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from foundation.audit.log import MerkleAuditLog
from foundation.audit.settings import AuditSettings
from foundation.clock import SystemClock
from foundation.faults import Fault
from foundation.files import make_private_folder
from foundation.identifiers import Kind, SpiffeId
from foundation.ports import AuditEvent
from foundation.reasons import Reason
from gateway.configuration import SystemSettings
from gateway.identity import agent
from policies.signing import parse_verifying_key


@dataclass(frozen=True, slots=True)
class Joining:
    """What it takes: the settings' file, two of its sections, the policy key's public half, and the token's file."""

    path: Path
    system: SystemSettings
    audit: AuditSettings
    policy_key: bytes
    token_file: Path


async def join(joining: Joining) -> SpiffeId:
    """Make the audit log, and get this gateway's identity from the authority that the token names. What a run that was
    stopped left is taken up again. Raises `Fault` with what refuses."""
    clock = SystemClock()
    make_private_folder(joining.system.state)
    parse_verifying_key(joining.policy_key)
    if not joining.audit.key_path.exists():
        MerkleAuditLog.create(joining.audit, clock)
    told = await agent("enrol", "--token-file", str(joining.token_file), "--config", str(joining.path), "--json")
    identity = SpiffeId.parse(str(json.loads(told)["spiffe_id"]))
    if (identity.trust_domain, identity.kind) != (joining.system.trust_domain, Kind.GATEWAY):
        raise Fault(Reason.SETTING_INVALID, f"the token is for {identity}", field="sallyport.trust_domain")
    audit = await MerkleAuditLog.open(joining.audit, clock)
    try:
        await audit.append(AuditEvent("gateway.joined", "join", str(identity)))
    finally:
        await audit.close()
    return identity
