"""Everything that the authority serves, as routes: one list for operators and gateways, one for enrolment, one for
renewal."""

from __future__ import annotations

from foundation.api import ApiRoute
from pki.api.fleet import FleetApi
from pki.api.operators import OperatorCertificatesApi
from pki.api.trust import AuditHead, TrustApi, VerifyBundle
from pki.authority import Authority


def authority_routes(
    authority: Authority, trust_domain: str, *, verify_bundle: VerifyBundle, audit_head: AuditHead
) -> list[ApiRoute]:
    """The routes of the authority's API, for `foundation.api.api_application`."""
    trust = TrustApi(authority, trust_domain, verify_bundle, audit_head)
    operators = OperatorCertificatesApi(authority, trust_domain)
    return [*FleetApi(authority, trust_domain).routes(), *operators.routes(), *trust.routes()]
