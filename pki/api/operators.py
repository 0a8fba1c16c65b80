"""The authority's API, what concerns operators' own certificates."""

from __future__ import annotations

from foundation.api import MAX_JSON_BYTES, Answer, ApiRoute, Call
from foundation.faults import Fault
from foundation.identifiers import Kind, SpiffeId, check_name
from foundation.reasons import Reason
from pki.authority import Authority
from pki.operators import MAX_REQUEST_BYTES


class OperatorCertificatesApi:
    """Handlers over `pki.operators`."""

    def __init__(self, authority: Authority, trust_domain: str) -> None:
        self._operators = authority.operators
        self._trust_domain = trust_domain

    def routes(self) -> list[ApiRoute]:
        # Who issues an operator's certificate acts as that operator: it goes by the name of what makes identities.
        certify, renew = "/v1/inventory/operator/{name}/certify", "/v1/self/certificate"
        return [
            ApiRoute("identities.certify", "POST", certify, self.issue, "An operator's certificate", MAX_JSON_BYTES),
            ApiRoute("self.renew", "POST", renew, self.renew, "The calling operator's next", MAX_JSON_BYTES),
        ]

    async def issue(self, call: Call) -> Answer:
        request = _request(call)
        identity = SpiffeId(self._trust_domain, Kind.OPERATOR, check_name(call.parameters["name"]))
        try:
            return Answer(await self._operators.issue(identity, request, str(call.caller.id)), 201)
        except Fault as fault:
            if fault.reason is Reason.INVENTORY_UNKNOWN:
                raise Fault(Reason.NOT_FOUND, "the inventory has no such operator", field="name") from fault
            raise

    async def renew(self, call: Call) -> Answer:
        return Answer(await self._operators.renew(call.caller, _request(call)), 201)


def _request(call: Call) -> bytes:
    """The body's certificate request, DER."""
    fields = call.fields()
    request = fields.base64("csr", max_bytes=MAX_REQUEST_BYTES)
    fields.finish()
    return request
