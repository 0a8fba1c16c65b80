"""The authority's API, what nodes use for themselves, and what operators read of it.

A node's name is always that of its certificate: nobody asks or reports for another.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from foundation.api import NDJSON, OCTETS, Answer, ApiRoute, Call
from foundation.faults import Fault
from foundation.fields import Fields
from foundation.identifiers import Kind, SpiffeId, check_name
from foundation.reasons import Reason
from foundation.wire.bundle import BundleTerms
from foundation.wire.health import MAX_REPORT_BYTES, Standing, ailments
from foundation.wire.records import MAX_BATCH_BYTES, RecordBatch, RecordKind
from pki.api.documents import PAGING, limit_of, whole_number
from pki.authority import Authority
from pki.node_health import NodeStanding
from pki.node_records import KeptRecord

MAX_RECORDS = 200
"""In one answer: records are larger than other rows."""


class NodeApi:
    """Handlers of bundles and records. `policy_key` tells the policy signing key's public half now, PEM; `terms` are
    those of every bundle."""

    def __init__(
        self, authority: Authority, trust_domain: str, policy_key: Callable[[], bytes], terms: BundleTerms
    ) -> None:
        self._authority = authority
        self._trust_domain = trust_domain
        self._policy_key = policy_key
        self._terms = terms

    def routes(self) -> list[ApiRoute]:
        bundle, records, listed = "/v1/node/bundle", "/v1/node/records", "/v1/inventory/node/{name}/records"
        health, stands = "/v1/node/health", "/v1/inventory/node/{name}/health"
        return [
            ApiRoute("self.bundle", "GET", bundle, self.bundle, "What the node decides by", query=("have",)),
            ApiRoute("self.report", "POST", records, self.report, "The node's records", MAX_BATCH_BYTES, NDJSON),
            ApiRoute("records.list", "GET", listed, self.records, "What a node noted", query=("kind", *PAGING)),
            ApiRoute("self.report", "POST", health, self.health, "How the node is, by itself", MAX_REPORT_BYTES),
            ApiRoute("inventory.show", "GET", stands, self.stands, "How a node is, by its own newest report"),
            ApiRoute("inventory.list", "GET", "/v1/health", self.stand, "How nodes are", query=("standing", *PAGING)),
        ]

    async def bundle(self, call: Call) -> Answer:
        node = _node(call)
        bundle = await self._authority.bundles.of(node, whole_number(call, "have", 0), self._policy_key(), self._terms)
        return Answer(bundle.encode(), content_type=OCTETS)

    async def report(self, call: Call) -> Answer:
        receipt = await self._authority.node_records.take(_node(call), RecordBatch.parse(call.body))
        return Answer(receipt.encode())

    async def records(self, call: Call) -> Answer:
        node = SpiffeId(self._trust_domain, Kind.NODE, call.parameters["name"])
        limit = min(limit_of(call), MAX_RECORDS)
        kind = RecordKind(_kind(call.query["kind"])) if "kind" in call.query else None
        found = await self._authority.node_records.page(
            node, kind=kind, after=whole_number(call, "after", 0), limit=limit
        )
        following = str(found[-1].number) if len(found) == limit else ""
        return Answer.of({"items": [_document(each) for each in found], "next": following})

    async def health(self, call: Call) -> Answer:
        return Answer.of({"at": await self._authority.node_health.take(_node(call), call.body)})

    async def stands(self, call: Call) -> Answer:
        node = SpiffeId(self._trust_domain, Kind.NODE, check_name(call.parameters["name"]))
        try:
            await self._authority.inventory.get(node)
        except Fault as fault:
            raise Fault(Reason.NOT_FOUND) if fault.reason is Reason.INVENTORY_UNKNOWN else fault from fault
        return Answer.of(_stands(await self._authority.node_health.of(node)))

    async def stand(self, call: Call) -> Answer:
        query, limit = Fields(dict(call.query), "query", Reason.MESSAGE_MALFORMED), limit_of(call)
        wanted = Standing(query.one_of("standing", tuple(Standing))) if query.has("standing") else None
        found = await self._authority.node_health.page(wanted, after=call.query.get("after", ""), limit=limit)
        following = str(found[-1].node) if len(found) == limit else ""
        return Answer.of({"items": [_stands(each) for each in found], "next": following})


def node_routes(
    authority: Authority, trust_domain: str, *, policy_key: Callable[[], bytes], terms: BundleTerms
) -> list[ApiRoute]:
    """For `foundation.api.api_application`; see `NodeApi`."""
    return NodeApi(authority, trust_domain, policy_key, terms).routes()


def _node(call: Call) -> SpiffeId:
    if call.caller.id.kind is not Kind.NODE:
        raise Fault(Reason.KIND_NOT_ALLOWED)
    return call.caller.id


def _stands(found: NodeStanding) -> dict[str, Any]:
    """`reported` is the node's own word, beside the inventory's and never in its place."""
    report = found.report
    return {
        "name": found.node.name,
        "standing": found.standing.value,
        "received_at": found.received_at,
        "ailments": [each.value for each in ailments(report)] if report else [],
        "reported": report.document() if report else {},
    }


def _kind(text: str) -> str:
    if text not in tuple(RecordKind):
        raise Fault(Reason.MESSAGE_MALFORMED, f"expected one of {', '.join(RecordKind)}", field="query.kind")
    return text


def _document(kept: KeptRecord) -> dict[str, Any]:
    record = kept.record
    return {
        "number": kept.number,
        "node": str(kept.node),
        "incarnation": kept.incarnation,
        "sequence": kept.sequence,
        "received_at": kept.received_at,
        "at": record.at,
        "kind": record.kind.value,
        "body": dict(record.body),
    }
