"""The authority's API, what concerns trust: certificates, revocations, policy, the feed, the audit log's head."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from foundation.api import MAX_JSON_BYTES, OCTETS, Answer, ApiRoute, Call, Stream
from foundation.faults import Fault
from foundation.identifiers import Kind, SpiffeId
from foundation.identity import SnapshotNumbers
from foundation.reasons import Reason
from foundation.wire.changes import MAX_BUNDLE_BYTES, encode_change, revocation_document
from pki.api.documents import (
    PAGING,
    certificate_document,
    entry_document,
    limit_of,
    pem,
    reach_document,
    whole_number,
    why_of,
)
from pki.authority import Authority

# Verifies a signed bundle and tells its revision. Raises `Fault(REVISION_*)`.
VerifyBundle = Callable[[bytes], Awaitable[int]]
# The audit log's newest signed head, as JSON values.
AuditHead = Callable[[], Mapping[str, Any]]


class TrustApi:
    """Handlers over what the authority vouches for and what it withdrew."""

    def __init__(
        self, authority: Authority, trust_domain: str, verify_bundle: VerifyBundle, audit_head: AuditHead
    ) -> None:
        self._authority = authority
        self._trust_domain = trust_domain
        self._verify_bundle = verify_bundle
        self._audit_head = audit_head

    def routes(self) -> list[ApiRoute]:
        revoke, publish = "/v1/certificates/{serial}/revoke", "/v1/policy/revisions"
        withdraw = "/v1/ca/{key_identifier}/withdraw"
        paged_by_identity = ("identity", *PAGING)
        return [
            ApiRoute(
                "certificates.list",
                "GET",
                "/v1/certificates",
                self.list,
                "Certificates, by page",
                query=paged_by_identity,
            ),
            ApiRoute("certificates.show", "GET", "/v1/certificates/{serial}", self.show, "One certificate"),
            ApiRoute("certificates.revoke", "POST", revoke, self.revoke, "Revoke one certificate", MAX_JSON_BYTES),
            ApiRoute("ca.show", "GET", "/v1/ca/chain", self.chain, "Issuing CA and root, PEM"),
            ApiRoute("ca.show", "GET", "/v1/ca/crl", self.crl, "The issuing CA's CRL, DER"),
            ApiRoute(
                "ca.withdraw", "POST", withdraw, self.withdraw, "Withdraw a CA with all that it signed", MAX_JSON_BYTES
            ),
            ApiRoute("revocations.list", "GET", "/v1/revocations", self.revocations, "Revocations", query=PAGING),
            ApiRoute("policy.publish", "POST", publish, self.publish, "A signed revision", MAX_BUNDLE_BYTES, OCTETS),
            ApiRoute("policy.show", "GET", "/v1/policy/revisions/current", self.policy, "The revision in force"),
            ApiRoute(
                "feed.follow", "GET", "/v1/feed", self.follow, "Changes, one a line", query=SnapshotNumbers._fields
            ),
            # Of who follows, by the same leave.
            ApiRoute("feed.follow", "POST", "/v1/feed/acknowledged", self.acknowledge, "What is in force there", 4096),
            ApiRoute("audit.show", "GET", "/v1/audit/head", self.audit, "The audit log's signed head"),
            ApiRoute("self.show", "GET", "/v1/self", self.own_entry, "The caller's own entry"),
        ]

    async def list(self, call: Call) -> Answer:
        limit = limit_of(call)
        identity = SpiffeId.parse(call.query["identity"]) if "identity" in call.query else None
        found = await self._authority.ledger.page(identity, after=call.query.get("after", ""), limit=limit)
        following = found[-1].serial if len(found) == limit else ""
        return Answer.of({"items": [certificate_document(row) for row in found], "next": following})

    async def show(self, call: Call) -> Answer:
        return Answer.of(certificate_document(await self._authority.ledger.certificate(call.parameters["serial"])))

    async def revoke(self, call: Call) -> Answer:
        fields = call.fields()
        why = why_of(fields)
        fields.finish()
        serial, actor = call.parameters["serial"], str(call.caller.id)
        made = await self._authority.revocations.revoke_certificate(serial, why, actor)
        reach = await self._authority.wait_in_force(made.number, actor)
        return Answer.of(revocation_document(made) | {"gateways": reach_document(reach)})

    async def withdraw(self, call: Call) -> Answer:
        call.fields().finish()
        actor = str(call.caller.id)
        revocations = self._authority.revocations
        made = await revocations.withdraw_issuer(call.parameters["key_identifier"], self._trust_domain, actor)
        reach = await self._authority.wait_in_force(made.number, actor)
        return Answer.of(revocation_document(made) | {"gateways": reach_document(reach)})

    async def chain(self, call: Call) -> Answer:
        whole = "".join(pem(der) for der in self._authority.chain)
        return Answer(whole.encode(), content_type="application/pem-certificate-chain")

    async def crl(self, call: Call) -> Answer:
        return Answer(await self._authority.revocations.crl(), content_type="application/pkix-crl")

    async def revocations(self, call: Call) -> Answer:
        limit = limit_of(call)
        found = await self._authority.revocations.page(after=whole_number(call, "after", 0), limit=limit)
        following = str(found[-1].number) if len(found) == limit else ""
        return Answer.of({"items": [revocation_document(one) for one in found], "next": following})

    async def publish(self, call: Call) -> Answer:
        revision = await self._verify_bundle(call.body)
        await self._authority.publish_policy(revision, call.body, str(call.caller.id))
        return Answer.of({"revision": revision}, 201)

    async def policy(self, call: Call) -> Answer:
        return Answer((await self._authority.policy()).bundle, content_type=OCTETS)

    async def follow(self, call: Call) -> Stream:
        """Changes after the numbers of the query, or all that is true when it names none."""
        given = [whole_number(call, name, 0) for name in SnapshotNumbers._fields]
        since = SnapshotNumbers(*given) if call.query else None
        return Stream(self._lines(since))

    @asynccontextmanager
    async def _lines(self, since: SnapshotNumbers | None) -> AsyncIterator[AsyncIterator[bytes]]:
        async with self._authority.feed.follow(since) as changes:
            yield (encode_change(change) async for change in changes)

    async def acknowledge(self, call: Call) -> Answer:
        """The caller says up to where it enforces."""
        fields = call.fields()
        numbers = SnapshotNumbers(*(fields.integer(name) for name in SnapshotNumbers._fields))
        fields.finish()
        if call.caller.id.kind is not Kind.GATEWAY:
            raise Fault(Reason.KIND_NOT_ALLOWED)
        self._authority.presence.report(call.caller.id, numbers)
        return Answer.of({})

    async def audit(self, call: Call) -> Answer:
        return Answer.of(dict(self._audit_head()))

    async def own_entry(self, call: Call) -> Answer:
        return Answer.of(entry_document(await self._authority.inventory.get(call.caller.id)))
