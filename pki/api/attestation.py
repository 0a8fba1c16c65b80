"""The route of continuous re-attestation, for the listener of the API."""

from __future__ import annotations

from foundation.api import Answer, ApiRoute, Call
from foundation.wire.reattestation import MAX_PUSH_BYTES, PATH
from pki.attest.service import Attesting
from pki.enrol.origin import Origin


def attestation_routes(attesting: Attesting) -> list[ApiRoute]:
    """For `foundation.api.api_application`: the node itself, with its present certificate."""

    async def push(call: Call) -> Answer:
        origin = Origin(call.address, call.server_spki_sha256)
        return Answer(await attesting.push(call.body, call.caller, origin))

    return [ApiRoute("attest", "POST", PATH, push, "PUSH, answered by NEXT", MAX_PUSH_BYTES)]
