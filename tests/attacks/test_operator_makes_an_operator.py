"""Class "operator makes an operator" (found here): the role that brings nodes in must not be able to make an identity
that holds another role, nor get a certificate of one that does. Neither door lets it: the nodes' refuses other kinds,
the others' is for security alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from foundation.identifiers import Kind
from foundation.tls import client_context
from tests.support.enforced import Enforced
from tests.support.installation import installation

EVIL = {"name": "evil", "kind": "operator", "roles": ["security"]}
ATTEMPTS: list[tuple[str, dict[str, Any], str]] = [
    ("/v1/inventory", EVIL, "message_malformed"),
    ("/v1/inventory/import", {"entries": [EVIL]}, "message_malformed"),
    ("/v1/identities", EVIL, "role_missing"),
    ("/v1/tokens", {"name": "evil", "kind": "gateway", "ttl": "1h"}, "message_malformed"),
    ("/v1/identities/tokens", {"name": "evil", "kind": "gateway", "ttl": "1h"}, "role_missing"),
    ("/v1/inventory/operator/admin/revoke", {}, "role_missing"),
    ("/v1/inventory/operator/admin/quarantine", {}, "role_missing"),
    ("/v1/inventory/operator/admin/certify", {"csr": ""}, "role_missing"),
]


@pytest.mark.parametrize(("path", "body", "reason"), ATTEMPTS)
async def test_neither_door_lets_it(tmp_path: Path, path: str, body: dict[str, Any], reason: str) -> None:
    async with installation(tmp_path / "site") as site:
        policy = Enforced(site)
        await policy.load()
        pair = await site.certify("eve", Kind.OPERATOR, ("operator",))
        await policy.catch_up()
        context = client_context(site.root_pem, pair=pair)
        async with site.serving(policy.authorizer) as address, aiohttp.ClientSession() as session:
            url = f"https://localhost:{address.port}{path}"
            async with session.post(url, json=body, ssl=context) as response:
                assert json.loads(await response.read())["reason"] == reason
        assert {entry.id.name for entry in await site.authority.inventory.page()}.isdisjoint({"evil"})
