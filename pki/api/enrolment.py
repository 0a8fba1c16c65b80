"""The routes of enrolment, for a listener that asks for no client certificate and serves nothing else, and of renewal,
for the listener of the API."""

from __future__ import annotations

from foundation.api import Answer, ApiRoute, Call
from foundation.wire.enrolment import MAX_BEGIN_BYTES, MAX_COMPLETE_BYTES
from pki.enrol.native import NativeEnrolment
from pki.enrol.origin import Origin
from pki.enrol.renew import NativeRenewal


def enrolment_routes(enrolment: NativeEnrolment) -> list[ApiRoute]:
    """For `foundation.api.public_application`."""

    async def begin(call: Call) -> Answer:
        return Answer(await enrolment.begin(call.body, _origin(call)))

    async def complete(call: Call) -> Answer:
        return Answer(await enrolment.complete(call.body, _origin(call)))

    return [
        ApiRoute("enrol", "POST", "/v1/enrol/begin", begin, "BEGIN, answered by CHALLENGE", MAX_BEGIN_BYTES),
        ApiRoute("enrol", "POST", "/v1/enrol/complete", complete, "COMPLETE, answered by ISSUED", MAX_COMPLETE_BYTES),
    ]


def renewal_routes(renewal: NativeRenewal) -> list[ApiRoute]:
    """For `foundation.api.api_application`: the node itself, with its present certificate."""

    async def begin(call: Call) -> Answer:
        return Answer(await renewal.begin(call.body, call.caller, _origin(call)))

    async def complete(call: Call) -> Answer:
        return Answer(await renewal.complete(call.body, call.caller, _origin(call)))

    return [
        ApiRoute("renew", "POST", "/v1/renew/begin", begin, "BEGIN, answered by CHALLENGE", MAX_BEGIN_BYTES),
        ApiRoute("renew", "POST", "/v1/renew/complete", complete, "COMPLETE, answered by ISSUED", MAX_COMPLETE_BYTES),
    ]


def _origin(call: Call) -> Origin:
    return Origin(call.address, call.server_spki_sha256)
