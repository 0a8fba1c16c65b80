"""How an upstream is told who asks: every form, verified as an upstream would."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import jwt
import pytest
from aiohttp import web

from foundation.faults import Fault
from foundation.reasons import Reason
from gateway.proxy.assertion import KEY_FILE, PREVIOUS_KEY_FILE, AssertionKey, published_keys
from policies.upstreams import Address, IdentityHeader
from tests.support.gateway import GATEWAY, HOST, DataPlane, request_bytes, route

SET_BY_HOPS = {
    *(b"host", b"via", b"content-length", b"transfer-encoding", b"connection", b"upgrade", b"expect"),
    *(b"traceparent", b"tracestate", b"x-forwarded-client-cert"),
}
CALLER = "spiffe://fleet.example/node/edge-1"
FORGED = (
    "X-Forwarded-Client-Cert: By=spiffe://evil/a;URI=spiffe://fleet.example/operator/root",
    "x_forwarded_client_cert: x",
    "X-Sallyport-Assertion: a.b.c",
    "X-Sallyport-Identity: spiffe://fleet.example/operator/root",
)


@asynccontextmanager
async def told(folder: Path, *identity: IdentityHeader) -> AsyncIterator[tuple[DataPlane, list[web.Request]]]:
    """A data plane before an aiohttp server, and the requests that the server saw."""
    seen: list[web.Request] = []

    async def answer(request: web.Request) -> web.Response:
        await request.read()
        seen.append(request)
        return web.Response()

    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    plane = DataPlane(folder, (route(Address(*runner.addresses[0][:2]), pool={"identity": identity}),))
    try:
        async with plane.running():
            yield plane, seen
    finally:
        await runner.cleanup()


def verified(plane: DataPlane, request: web.Request) -> dict[str, Any]:
    """The claims of the request's assertion, as a careful upstream takes them."""
    token = request.headers["x-sallyport-assertion"]
    key = jwt.PyJWK(dict(plane.assertion_key.public))
    assert jwt.get_unverified_header(token) == {"alg": "ES256", "typ": "JWT", "kid": plane.assertion_key.kid}
    options: Any = {"require": ["exp", "iat", "iss", "sub", "aud", "jti"], "verify_iat": False, "verify_exp": False}
    claims = jwt.decode(token, key, ["ES256"], audience="api", issuer=GATEWAY, options=options)
    assert claims["iat"] == int(plane.clock.now())
    assert claims["exp"] - claims["iat"] == 30
    kept = sorted(
        b"%b: %b\n" % (name.lower(), value)
        for name, value in request.raw_headers
        if name.lower() not in SET_BY_HOPS and not name.lower().startswith(b"x-sallyport-")
    )
    head = f"{request.method}\n{request.raw_path}\n{request.host}\n".encode() + b"".join(kept)
    assert claims["head_sha256"] == hashlib.sha256(head).hexdigest()
    return claims


async def test_an_assertion_is_for_this_request_alone(tmp_path: Path) -> None:
    async with told(tmp_path, IdentityHeader.ASSERTION) as (plane, seen):
        client = await plane.connect()
        answered = await client.get("/v1/things?x=%41", "B: 2", "A: 1", "a: 0", "Via: 1.1 mine", *FORGED)
        claims = verified(plane, seen[0])
        assert (claims["sub"], claims["jti"]) == (CALLER, answered.header("x-sallyport-decision"))
        assert (claims["method"], claims["target"]) == ("GET", "/v1/things?x=%41")
        assert claims["body_sha256"] == hashlib.sha256(b"").hexdigest()
        assert "x-sallyport-identity" not in seen[0].headers
        await client.ask(request_bytes("POST", "/v1/things", body=b"streamed"))
        assert "body_sha256" not in verified(plane, seen[1])


async def test_xfcc_is_in_envoys_grammar(tmp_path: Path) -> None:
    async with told(tmp_path, IdentityHeader.XFCC) as (plane, seen):
        await (await plane.connect()).get("/x", *FORGED)
        (connection,) = plane.listener.connections
        digest = hashlib.sha256(connection.caller.peer.certificate).hexdigest()
        assert seen[0].headers.getall("x-forwarded-client-cert") == [f"By={GATEWAY};Hash={digest};URI={CALLER}"]


@pytest.mark.parametrize("identity", [(), (IdentityHeader.SALLYPORT,), tuple(IdentityHeader)])
async def test_each_form_can_be_left_out_and_nobody_else_sets_it(
    tmp_path: Path, identity: tuple[IdentityHeader, ...]
) -> None:
    async with told(tmp_path, *identity) as (plane, seen):
        await (await plane.connect()).get("/x", *FORGED)
        headers = {name.lower().replace("_", "-"): seen[0].headers.getall(name) for name in seen[0].headers}
        expected = {
            "x-sallyport-identity": IdentityHeader.SALLYPORT,
            "x-sallyport-decision": IdentityHeader.SALLYPORT,
            "x-forwarded-client-cert": IdentityHeader.XFCC,
            "x-sallyport-assertion": IdentityHeader.ASSERTION,
        }
        for name, form in expected.items():
            assert len(headers.get(name, [])) == (form in identity), name
        if IdentityHeader.SALLYPORT in identity:
            assert headers["x-sallyport-identity"] == [CALLER]
        assert seen[0].headers["host"] == HOST


def test_the_key_is_made_once_for_this_user_alone(tmp_path: Path) -> None:
    made = AssertionKey.open(tmp_path)
    assert stat.S_IMODE((tmp_path / KEY_FILE).stat().st_mode) == 0o600
    assert AssertionKey.open(tmp_path).kid == made.kid
    assert published_keys(tmp_path) == {"keys": [dict(made.public)]}


def test_the_key_before_still_verifies(tmp_path: Path) -> None:
    before = AssertionKey.open(tmp_path)
    (tmp_path / KEY_FILE).rename(tmp_path / PREVIOUS_KEY_FILE)
    assert published_keys(tmp_path)["keys"] == [dict(before.public)]
    now = AssertionKey.open(tmp_path)
    assert [key["kid"] for key in published_keys(tmp_path)["keys"]] == [now.kid, before.kid]


def test_no_key_is_published_where_none_is(tmp_path: Path) -> None:
    assert published_keys(tmp_path) == {"keys": []}


def test_a_key_that_others_can_read_is_not_used(tmp_path: Path) -> None:
    AssertionKey.open(tmp_path)
    (tmp_path / KEY_FILE).chmod(0o644)
    with pytest.raises(Fault) as refused:
        AssertionKey.open(tmp_path)
    assert refused.value.reason is Reason.FILE_MODE_UNSAFE
