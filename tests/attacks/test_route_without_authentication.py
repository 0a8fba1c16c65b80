"""Attack class "route without authentication" (CVE-2026-1709): every route of the API, taken from the router itself, as
every kind of caller: none is missed, and each is allowed what api.yaml says, by the real policy, and nothing more."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
import yaml
from aiohttp import web

from agent.settings import Address
from foundation.api import ApiRoute, api_application, public_application
from foundation.callers import LocalCallers
from foundation.identifiers import Kind
from foundation.tls import KeyPair, client_context
from pki.api.enrolment import enrolment_routes
from pki.revocation_reason import RevocationReason
from tests.support.certificates import SmallAuthority
from tests.support.enforced import Enforced
from tests.support.installation import TRUST_DOMAIN, Installation, installation

TABLE = yaml.safe_load((Path(__file__).parents[2] / "policies/rego/api.yaml").read_text())
ROLES = ("viewer", "operator", "security", "break-glass")
DENIALS = {"role_missing", "kind_not_allowed", "posture_failed", "deny_override"}
CALLERS = [*ROLES, "nobody's role", "node", "gateway", "service"]


def may(caller: str, route: str) -> bool:
    """What api.yaml says, read without Rego."""
    area, _, verb = route.partition(".")
    entries = TABLE["roles"].get(caller, []) if caller not in TABLE["kinds"] else TABLE["kinds"][caller]
    return bool({route, f"{area}.*", f"*.{verb}"} & set(entries))


async def _pair(site: Installation, caller: str) -> KeyPair:
    if caller in ("node", "gateway", "service"):
        return await site.certify("caller", Kind(caller), roles=ROLES if caller != "service" else ())
    name = re.sub("[^a-z]", "-", caller)
    return await site.certify(f"op-{name}", Kind.OPERATOR, (name,))


def _path(route: ApiRoute) -> str:
    return re.sub(
        r"\{(\w+)\}", lambda found: {"kind": "operator", "name": "nobody"}.get(found[1], "abcdef"), route.path
    )


class Client:
    """One caller's connection."""

    def __init__(self, address: Address, session: aiohttp.ClientSession) -> None:
        self._url = f"https://localhost:{address.port}"
        self._session = session

    async def call(self, route: ApiRoute) -> tuple[int, str]:
        """The status, and the reason of a refusal."""
        async with self._session.request(route.method, self._url + _path(route)) as response:
            if response.status < 300:
                return response.status, ""
            return response.status, json.loads(await response.read())["reason"]


@asynccontextmanager
async def _client(address: Address, pair: KeyPair, root: bytes) -> AsyncIterator[Client]:
    connector = aiohttp.TCPConnector(ssl=client_context(root, pair=pair))
    async with aiohttp.ClientSession(connector=connector) as session:
        yield Client(address, session)


@pytest.fixture
async def enforced(tmp_path: Path) -> AsyncIterator[tuple[Installation, Enforced]]:
    async with installation(tmp_path / "site") as site:
        enforced = Enforced(site)
        await enforced.load()
        yield site, enforced


async def test_every_route_as_every_caller(enforced: tuple[Installation, Enforced]) -> None:
    site, policy = enforced
    pairs = {caller: await _pair(site, caller) for caller in CALLERS}
    await policy.catch_up()
    wrong = []
    async with site.serving(policy.authorizer) as address:
        for caller, pair in pairs.items():
            async with _client(address, pair, site.root_pem) as client:
                for route in site.routes():
                    status, reason = await client.call(route)
                    denied = status in (401, 403) and reason in DENIALS
                    if denied is may(caller, route.name):
                        wrong.append((route.method, route.path, caller, status, reason))
    assert wrong == []


@pytest.mark.parametrize(
    ("caller", "reason"),
    [
        ("revoked", "identity_revoked"),
        ("certificate revoked", "identity_revoked"),
        ("quarantined", "identity_quarantined"),
        ("expired", "certificate_expired"),
        ("unknown", "identity_unknown"),
    ],
)
async def test_every_route_as_a_caller_that_is_out(
    enforced: tuple[Installation, Enforced], caller: str, reason: str
) -> None:
    site, policy = enforced
    pair = await site.certify("eve", Kind.OPERATOR, ROLES)
    identity = site.id("eve", Kind.OPERATOR)
    authority = site.authority
    if caller == "revoked":
        await authority.revocations.revoke_identity(identity, RevocationReason.KEY_COMPROMISE, "ada")
    elif caller == "certificate revoked":
        serial = (await authority.inventory.get(identity)).current_serial
        await authority.revocations.revoke_certificate(serial, RevocationReason.KEY_COMPROMISE, "ada")
    elif caller == "quarantined":
        await authority.inventory.quarantine(identity, "ada")
    elif caller == "expired":
        site.clock.advance(9 * 3600)
    elif caller == "unknown":
        await authority.revocations.revoke_identity(identity, RevocationReason.UNSPECIFIED, "ada")
        await authority.revocations.admit(identity, "ada")
        reason = "identity_unknown"
    await policy.catch_up()
    async with site.serving(policy.authorizer) as address, _client(address, pair, site.root_pem) as client:
        answers = {await client.call(route) for route in site.routes()}
    assert {told for _, told in answers} == {reason}


@pytest.mark.parametrize("certificate", ["none", "of another authority", "self-made", "a server's"])
async def test_nobody_gets_past_the_handshake(
    enforced: tuple[Installation, Enforced], tmp_path: Path, certificate: str
) -> None:
    site, policy = enforced
    other = SmallAuthority(tmp_path)
    pair = {
        "none": lambda: None,
        "of another authority": lambda: other.client(f"spiffe://{TRUST_DOMAIN}/operator/admin"),
        "self-made": lambda: SmallAuthority(tmp_path).client(f"spiffe://{TRUST_DOMAIN}/operator/admin"),
        "a server's": lambda: site.pair("server"),
    }[certificate]()
    context = client_context(site.root_pem, pair=pair)
    async with site.serving(policy.authorizer) as address:
        reader, writer = await asyncio.open_connection("localhost", address.port, ssl=context)
        answer = b""
        with contextlib.suppress(OSError):
            writer.write(b"GET /v1/inventory HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = await reader.read(1)
        writer.close()
    assert answer == b""


def test_the_table_above_covers_what_is_served(tmp_path: Path) -> None:
    """No route reaches the router but through `ApiRoute`, and every one of them has a name that policy decides by."""

    class Nothing:
        def __getattr__(self, name: str) -> object:
            return self

    from pki.api.attestation import attestation_routes
    from pki.api.enrolment import renewal_routes
    from pki.api.node import node_routes
    from pki.api.routes import authority_routes

    nothing = Nothing()
    routes = [
        *authority_routes(nothing, TRUST_DOMAIN, verify_bundle=nothing, audit_head=nothing),
        *renewal_routes(nothing),
        *node_routes(nothing, TRUST_DOMAIN, policy_key=nothing, terms=nothing),
        *attestation_routes(nothing),
    ]
    application = api_application(routes, LocalCallers(TRUST_DOMAIN).identify, nothing)
    served = {(each.method, each.resource.canonical) for each in application.router.routes() if each.resource}
    assert served == {(route.method, route.path) for route in routes}
    assert all(re.fullmatch(r"[a-z-]+(\.[a-z-]+)?", route.name) for route in routes)


def test_the_enrolment_listener_serves_two_messages_and_nothing_else() -> None:
    application: web.Application = public_application(enrolment_routes(None))
    served = {(each.method, each.resource.canonical) for each in application.router.routes() if each.resource}
    assert served == {("POST", "/v1/enrol/begin"), ("POST", "/v1/enrol/complete")}


async def test_a_node_sees_itself_alone(enforced: tuple[Installation, Enforced]) -> None:
    site, policy = enforced
    pair = await site.certify("edge-1", Kind.NODE)
    await site.certify("edge-2", Kind.NODE)
    await policy.catch_up()
    context = client_context(site.root_pem, pair=pair)
    async with (
        site.serving(policy.authorizer) as address,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session,
    ):
        async with session.get(f"https://localhost:{address.port}/v1/self") as response:
            assert (await response.json())["name"] == "edge-1"
        async with session.get(f"https://localhost:{address.port}/v1/inventory/node/edge-2") as response:
            assert (response.status, (await response.json())["reason"]) == (403, "kind_not_allowed")
