"""What the whole system knows of an identity: its record, its posture, and the numbered changes to either.

The authority owns these facts and numbers every change; gateways follow (`foundation.ports.ChangeFeed`) and hold
them in a snapshot. An identity's *epoch* rises with any change of its state, roles, posture class or verdict, or
certificate. A *deadline* (such as `attested_until`) is no fact: moving one changes no epoch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from foundation.identifiers import SpiffeId


class State(StrEnum):
    """Where an identity stands in its life."""

    EXPECTED = "expected"  # in the inventory, never enrolled
    ACTIVE = "active"
    QUARANTINED = "quarantined"
    REVOKED = "revoked"


class AttestationClass(StrEnum):
    """What proved the identity: a maker's TPM, an emulated or hypervisor's TPM, or nothing."""

    HARDWARE = "hardware"
    VIRTUAL = "virtual"
    NONE = "none"


class Verdict(StrEnum):
    """How the last attestation ended. `FAILED` latches until an operator clears it."""

    PASSED = "passed"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class IdentityRecord:
    """One identity. `tier` is 0 for what is not a node; texts are empty where they do not apply."""

    id: SpiffeId
    state: State
    epoch: int
    roles: tuple[str, ...] = ()
    tier: int = 0
    region: str = ""
    site: str = ""
    segment: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Posture:
    """What attestation last proved. Until when is a deadline, kept beside it."""

    attestation: AttestationClass
    verdict: Verdict


class SnapshotNumbers(NamedTuple):
    """The numbers of a snapshot's parts, as recorded with every decision."""

    policy: int
    revocations: int
    postures: int
    inventory: int


CA_COMPROMISE = "ca_compromise"
"""The reason (RFC 5280 §5.3.1) by which an issuing CA itself is withdrawn."""


@dataclass(frozen=True, slots=True)
class Revocation:
    """Trust withdrawn from one certificate (`serial` in lower-case hex) or, when `serial` is empty, from the identity
    with all its certificates; for `CA_COMPROMISE`, from everything that an issuing CA signed: `serial` is then the
    identifier of its key, and `id` names nobody. `number` counts all revocations of the authority, without
    gaps."""

    number: int
    id: SpiffeId
    serial: str
    reason: str
    at: float

    @property
    def issuer(self) -> str:
        """The identifier of the withdrawn CA's key (RFC 5280 §4.2.1.2), in lower-case hex; empty for any other."""
        return self.serial if self.reason == CA_COMPROMISE else ""


@dataclass(frozen=True, slots=True)
class Renewal:
    """The holder of the certificate `old` proved, with the same AK, that the same TPM holds the key of `new`. That one
    ends at `until` (seconds since the Unix epoch). Serials in lower-case hex."""

    old: str
    new: str
    until: float


@dataclass(frozen=True, slots=True)
class PostureChanged:
    """A change of class or verdict (`number` rises), or a moved deadline alone (`number` is that of the last
    change). `at` is when it was committed, 0 when nobody knows, and no part of what it says; `renewal` is how the
    newest certificate came to be, where it is a renewal."""

    number: int
    id: SpiffeId
    posture: Posture
    attested_until: float
    at: float = field(default=0.0, compare=False)
    renewal: Renewal | None = None


@dataclass(frozen=True, slots=True)
class IdentityChanged:
    """A record was written; `record` is the whole of it. `at` as in `PostureChanged`."""

    number: int
    record: IdentityRecord
    at: float = field(default=0.0, compare=False)


@dataclass(frozen=True, slots=True)
class PolicyPublished:
    """A signed revision is to be enforced. `bundle` is the archive that `policies.lifecycle.revision` reads. `at` as in
    `PostureChanged`."""

    revision: int
    bundle: bytes
    at: float = field(default=0.0, compare=False)


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The authority lives: its clock and its latest numbers. Without it the staleness clock runs."""

    at: float
    numbers: SnapshotNumbers


Change = Revocation | PostureChanged | IdentityChanged | PolicyPublished | Heartbeat
