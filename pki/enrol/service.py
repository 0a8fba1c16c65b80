"""Puts the ways to a certificate, and to trust while it lives, together: the orchestrator makes it, the listeners'
routes are made from it."""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from foundation.clock import Clock
from foundation.hotstate import HotState
from foundation.ports import AuditLog
from pki.attest.metrics import AttestationMetrics
from pki.attest.service import LATCHING, Attesting
from pki.authority import Authority
from pki.enrol.judgement import Trust
from pki.enrol.native import NativeEnrolment
from pki.enrol.origin import Refusals
from pki.enrol.parts import Parts
from pki.enrol.renew import NativeRenewal
from pki.enrol.second import SecondMessages
from pki.enrol.sessions import Sessions
from pki.enrol.settings import EnrolmentSettings
from pki.enrol.use import CertificateUse
from pki.profile import Lifetimes


@dataclass(frozen=True, slots=True)
class EnrolmentService:
    """Enrolment, renewal and re-attestation over one authority. `use` is told of every certificate that authenticates a
    caller."""

    enrolment: NativeEnrolment
    renewal: NativeRenewal
    attesting: Attesting
    use: CertificateUse

    @classmethod
    def make(
        cls,
        authority: Authority,
        hot: HotState,
        audit: AuditLog,
        clock: Clock,
        *,
        session_key: bytes,
        settings: EnrolmentSettings,
        lifetimes: Lifetimes,
        trust: Trust,
        registry: CollectorRegistry | None = None,
    ) -> EnrolmentService:
        """`session_key` seals what is under way (`pki.enrol.sessions`). `trust` comes from
        `pki.enrol.judgement.load_trust`; metrics go to `registry`, where somebody reads them."""
        sessions = Sessions(hot, settings.session, session_key)
        refusals, use = Refusals(audit, clock), CertificateUse(hot)
        parts = Parts(authority, trust, sessions, settings, lifetimes, refusals, clock)
        second = SecondMessages(parts)
        attesting = Attesting(parts, AttestationMetrics(registry or CollectorRegistry(), LATCHING))
        return cls(NativeEnrolment(parts, second), NativeRenewal(parts, second, use), attesting, use)
