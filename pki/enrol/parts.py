"""What every way to a certificate is made of."""

from __future__ import annotations

from dataclasses import dataclass

from foundation.clock import Clock
from pki.authority import Authority
from pki.enrol.judgement import Trust
from pki.enrol.origin import Refusals
from pki.enrol.sessions import Sessions
from pki.enrol.settings import EnrolmentSettings
from pki.profile import Lifetimes


@dataclass(frozen=True, slots=True)
class Parts:
    """Shared by first and second messages, of enrolment and of renewal."""

    authority: Authority
    trust: Trust
    sessions: Sessions
    settings: EnrolmentSettings
    lifetimes: Lifetimes
    refusals: Refusals
    clock: Clock
