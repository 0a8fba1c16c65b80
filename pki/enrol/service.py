"""Puts the ways to a certificate together: the orchestrator makes it, the listeners' routes are made from it."""

from __future__ import annotations

from dataclasses import dataclass

from foundation.clock import Clock
from foundation.hotstate import HotState
from foundation.ports import AuditLog
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
    """Enrolment and renewal over one authority. `use` is told of every certificate that authenticates a caller."""

    enrolment: NativeEnrolment
    renewal: NativeRenewal
    use: CertificateUse

    @classmethod
    def make(
        cls,
        authority: Authority,
        hot: HotState,
        audit: AuditLog,
        clock: Clock,
        *,
        settings: EnrolmentSettings,
        lifetimes: Lifetimes,
        trust: Trust,
    ) -> EnrolmentService:
        """`trust` comes from `pki.enrol.judgement.load_trust`."""
        sessions, refusals, use = Sessions(hot, settings.session), Refusals(audit, clock), CertificateUse(hot)
        parts = Parts(authority, trust, sessions, settings, lifetimes, refusals, clock)
        second = SecondMessages(parts)
        return cls(NativeEnrolment(parts, second), NativeRenewal(parts, second, use), use)
