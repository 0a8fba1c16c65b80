"""Why trust is withdrawn."""

from __future__ import annotations

from enum import StrEnum


class RevocationReason(StrEnum):
    """Why (RFC 5280 §5.3.1); the names are those of `x509.ReasonFlags`. Reasons that concern CAs and attribute
    certificates are left out, and so is the hold: that is what quarantine is for."""

    UNSPECIFIED = "unspecified"
    KEY_COMPROMISE = "key_compromise"
    AFFILIATION_CHANGED = "affiliation_changed"
    SUPERSEDED = "superseded"
    CESSATION_OF_OPERATION = "cessation_of_operation"
    PRIVILEGE_WITHDRAWN = "privilege_withdrawn"
