"""The authority's API, what concerns the fleet: inventory and tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from foundation.api import MAX_JSON_BYTES, Answer, ApiRoute, Call, Handler
from foundation.faults import Fault
from foundation.fields import Fields
from foundation.identifiers import Kind, SpiffeId
from foundation.identity import Revocation
from foundation.reasons import Reason
from foundation.wire.changes import revocation_document
from pki.api.documents import (
    FILTERS,
    PAGING,
    body_identity,
    description_of,
    entry_document,
    filter_of,
    hex_after,
    limit_of,
    named_identity,
    reach_document,
    token_document,
    why_of,
)
from pki.authority import Authority
from pki.entries import Expected

MAX_IMPORT_BYTES = 8 * 1024 * 1024
MAX_IMPORTED = 10_000
_NODE, _ONE = "/v1/inventory/node/{name}", "/v1/inventory/{kind}/{name}"


class FleetApi:
    """Handlers over the inventory and its tokens."""

    def __init__(self, authority: Authority, trust_domain: str) -> None:
        self._authority = authority
        self._inventory = authority.inventory
        self._trust_domain = trust_domain

    def routes(self) -> list[ApiRoute]:
        return [
            ApiRoute("inventory.list", "GET", "/v1/inventory", self.list, "Entries, by page", query=FILTERS + PAGING),
            ApiRoute("inventory.show", "GET", _ONE, self.show, "One entry"),
            ApiRoute("inventory.add", "POST", "/v1/inventory", self.add, "Expect one node", MAX_JSON_BYTES),
            ApiRoute("identities.add", "POST", "/v1/identities", self.add_other, "Expect one other", MAX_JSON_BYTES),
            ApiRoute(
                "inventory.import",
                "POST",
                "/v1/inventory/import",
                self.add_all,
                "Expect many nodes or none",
                MAX_IMPORT_BYTES,
            ),
            *self._change("update", self.update, "Change roles, tier, place, labels", method="PATCH"),
            *self._change("quarantine", self.quarantine, "Shut out until released"),
            *self._change("release", self.release, "End a quarantine"),
            *self._change("clear-failure", self.clear_failure, "It was inspected: its failure is over"),
            *self._change("revoke", self.revoke, "Withdraw trust from an identity and all its certificates"),
            *self._change("admit", self.admit, "Let a revoked identity enrol again"),
            *self._change("retire", self.retire, "Revoke for good and part it from its TPM"),
            ApiRoute("tokens.list", "GET", "/v1/tokens", self.list_tokens, "Tokens, without secrets", query=PAGING),
            ApiRoute("tokens.create", "POST", "/v1/tokens", self.create_token, "A token for a node", MAX_JSON_BYTES),
            ApiRoute(
                "identities.token",
                "POST",
                "/v1/identities/tokens",
                self.create_other_token,
                "A token for another",
                MAX_JSON_BYTES,
            ),
            ApiRoute("tokens.void", "POST", "/v1/tokens/void", self.void_tokens, "Void unspent tokens", MAX_JSON_BYTES),
        ]

    async def list(self, call: Call) -> Answer:
        limit = limit_of(call)
        found = await self._inventory.page(filter_of(call), after=call.query.get("after", ""), limit=limit)
        following = str(found[-1].id) if len(found) == limit else ""
        return Answer.of({"items": [entry_document(entry) for entry in found], "next": following})

    async def show(self, call: Call) -> Answer:
        with _unknown_is_not_found():
            return Answer.of(entry_document(await self._inventory.get(named_identity(call, self._trust_domain))))

    async def add(self, call: Call) -> Answer:
        return await self._add(call, Expected.parse(call.fields(), self._trust_domain), nodes=True)

    async def add_other(self, call: Call) -> Answer:
        return await self._add(call, Expected.parse(call.fields(), self._trust_domain), nodes=False)

    async def _add(self, call: Call, expected: Expected, *, nodes: bool) -> Answer:
        _check_kind(expected.id, "/v1/identities" if nodes else "/v1/inventory", nodes=nodes)
        return Answer.of(entry_document(await self._inventory.add(expected, str(call.caller.id))), 201)

    async def add_all(self, call: Call) -> Answer:
        fields = call.fields()
        expected = fields.each("entries", lambda item: Expected.parse(item, self._trust_domain), most=MAX_IMPORTED)
        fields.finish()
        for each in expected:
            _check_kind(each.id, "/v1/identities", nodes=True)
        added = await self._inventory.add_all(expected, str(call.caller.id))
        return Answer.of({"added": len(added)}, 201)

    async def update(self, call: Call) -> Answer:
        description = description_of(call.fields())
        identity = named_identity(call, self._trust_domain)
        with _unknown_is_not_found():
            return Answer.of(entry_document(await self._inventory.describe(identity, description, str(call.caller.id))))

    async def quarantine(self, call: Call) -> Answer:
        return await self._move(call, release=False)

    async def release(self, call: Call) -> Answer:
        return await self._move(call, release=True)

    async def _move(self, call: Call, *, release: bool) -> Answer:
        fields = _body(call)
        note = fields.text("note", "", max_length=512)
        fields.finish()
        move = self._inventory.release if release else self._inventory.quarantine
        with _unknown_is_not_found():
            entry = await move(named_identity(call, self._trust_domain), str(call.caller.id), note)
        return Answer.of(entry_document(entry))

    async def clear_failure(self, call: Call) -> Answer:
        _body(call).finish()
        identity = named_identity(call, self._trust_domain)
        with _unknown_is_not_found():
            return Answer.of(entry_document(await self._inventory.clear_failure(identity, str(call.caller.id))))

    async def revoke(self, call: Call) -> Answer:
        fields = _body(call)
        why = why_of(fields)
        fields.finish()
        identity = named_identity(call, self._trust_domain)
        with _unknown_is_not_found():
            made = await self._authority.revocations.revoke_identity(identity, why, str(call.caller.id))
        return Answer.of(await self._revoked(made, call))

    async def admit(self, call: Call) -> Answer:
        _body(call).finish()
        identity = named_identity(call, self._trust_domain)
        with _unknown_is_not_found():
            entry = await self._authority.revocations.admit(identity, str(call.caller.id))
        return Answer.of(entry_document(entry))

    async def retire(self, call: Call) -> Answer:
        _body(call).finish()
        identity = named_identity(call, self._trust_domain)
        with _unknown_is_not_found():
            made = await self._authority.revocations.retire(identity, str(call.caller.id))
        return Answer.of(await self._revoked(made, call))

    async def _revoked(self, made: tuple[Revocation, ...], call: Call) -> dict[str, Any]:
        """What was revoked, and how far that has come; of what was revoked before, how far everything has."""
        numbers = [one.number for one in made] or [(await self._authority.feed.numbers()).revocations]
        reach = await self._authority.wait_in_force(max(numbers), str(call.caller.id))
        return {"revocations": [revocation_document(one) for one in made], "gateways": reach_document(reach)}

    async def list_tokens(self, call: Call) -> Answer:
        limit = limit_of(call)
        found = await self._authority.tokens.page(after=hex_after(call), limit=limit)
        following = found[-1].token_id.hex() if len(found) == limit else ""
        return Answer.of({"items": [token_document(one) for one in found], "next": following})

    async def create_token(self, call: Call) -> Answer:
        return await self._create_token(call, nodes=True)

    async def create_other_token(self, call: Call) -> Answer:
        return await self._create_token(call, nodes=False)

    async def _create_token(self, call: Call, *, nodes: bool) -> Answer:
        fields = call.fields()
        identity = body_identity(fields, self._trust_domain)
        _check_kind(identity, "/v1/identities/tokens" if nodes else "/v1/tokens", nodes=nodes)
        ttl = fields.duration("ttl", "1h")
        fields.finish()
        token = await self._authority.tokens.mint(identity, ttl, str(call.caller.id))
        made = {"token": token.encode(), "token_id": token.token_id.hex(), "identity": str(identity), "ttl": ttl}
        return Answer.of(made, 201)

    async def void_tokens(self, call: Call) -> Answer:
        fields = call.fields()
        identity = body_identity(fields, self._trust_domain)
        fields.finish()
        return Answer.of({"voided": await self._authority.tokens.void(identity, str(call.caller.id))})

    def _change(self, verb: str, handler: Handler, summary: str, *, method: str = "POST") -> tuple[ApiRoute, ApiRoute]:
        """Two routes, for policy tells nodes from those who could change what everybody may do."""
        tail = "" if method == "PATCH" else f"/{verb}"
        return (
            ApiRoute(f"inventory.{verb}", method, _NODE + tail, handler, f"{summary} (a node)", MAX_JSON_BYTES),
            ApiRoute(f"identities.{verb}", method, _ONE + tail, handler, f"{summary} (any other)", MAX_JSON_BYTES),
        )


def _check_kind(identity: SpiffeId, other_path: str, *, nodes: bool) -> None:
    """Nodes are the operators' business; operators, services and gateways are security's."""
    if (identity.kind is Kind.NODE) is not nodes:
        raise Fault(Reason.MESSAGE_MALFORMED, f"a {identity.kind.value} belongs to {other_path}", field="body.kind")


def _body(call: Call) -> Fields:
    """The body's fields, or none at all where it is empty."""
    return call.fields() if call.body else Fields({}, "body", Reason.MESSAGE_MALFORMED)


@contextmanager
def _unknown_is_not_found() -> Iterator[None]:
    # In a decision an unknown identity is a denial; asked for by an operator it is a name that does not exist.
    try:
        yield
    except Fault as fault:
        if fault.reason is Reason.INVENTORY_UNKNOWN:
            raise Fault(Reason.NOT_FOUND, "the inventory has no such entry", field="name") from fault
        raise
