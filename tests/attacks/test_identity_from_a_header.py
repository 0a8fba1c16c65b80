"""Row "identity from a header" (GHSA-7868-235p-7497, CVE-2026-46579, CVE-2026-30851, CVE-2026-88011): identity headers
and their aliases are removed, both directions, and the upstream gets ours alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.gateway import RawUpstream, gateway_to, request_bytes, saying

NAMES = [
    "X-Sallyport-Identity",
    "X-Sallyport-Decision",
    "X-Sallyport-Anything",
    "X-Forwarded-Client-Cert",
    "X-Forwarded-For",
    "X-Forwarded-User",
    "X-Forwarded-Email",
    "X-Forwarded-Groups",
    "X-Forwarded-Host",
    "X-Forwarded-Access-Token",
    "X-Real-IP",
    "Forwarded",
    "X-Remote-User",
    "X-Remote-Group",
    "X-Remote-Extra-Scopes",
    "Remote-User",
    "Remote-Groups",
    "X-Auth-Request-User",
    "X-Authenticated-User",
    "X-WebAuth-User",
    "X-User",
    "Client-Cert",
    "Client-Cert-Chain",
    "SSL-Client-Cert",
    "SSL-Client-S-DN",
    "SSL-Client-Verify",
    "X-SSL-Client-DN",
    "X-Client-Cert",
    "X-Client-Verify",
    "X-Envoy-Original-Path",
    "X-Original-URL",
    "X-Rewrite-URL",
    "X-HTTP-Method-Override",
    "True-Client-IP",
    "CF-Access-Authenticated-User-Email",
    "Tailscale-User-Login",
    "X-Goog-Authenticated-User-Email",
    "X-MS-Client-Principal",
    "X-Consumer-Username",
    "X-Pomerium-Claim-Email",
]
# What a CGI heir folds into a framing or hop-by-hop field of another spelling.
ALIASES = ["Content_Length", "Transfer_Encoding", "Transfer.Encoding", "X_Forwarded.For", "Proxy_Authorization"]


def spellings(name: str) -> list[str]:
    return [name, name.lower(), name.upper(), name.replace("-", "_"), name.replace("-", "."), name.replace("-", "_", 1)]


@pytest.mark.parametrize("name", NAMES)
async def test_no_spelling_of_an_identity_header_reaches_an_upstream(tmp_path: Path, name: str) -> None:
    upstream = RawUpstream()
    async with gateway_to(upstream, tmp_path) as plane:
        client = await plane.connect()
        lines = [f"{each}: evil" for each in spellings(name)] * 2
        assert (await client.ask(request_bytes("GET", "/x", "X-Kept: evil-twin", *lines))).status == 200
    (seen,) = upstream.seen
    assert seen.count(b"evil") == 1
    assert b"X-Kept: evil-twin\r\n" in seen
    assert seen.lower().count(b"x-sallyport-identity:") == seen.lower().count(b"x-sallyport-decision:") == 1
    assert b"x-sallyport-identity: spiffe://fleet.example/node/edge-1\r\n" in seen


@pytest.mark.parametrize("name", ALIASES)
async def test_no_alias_of_a_field_that_the_gateway_reads_reaches_an_upstream(tmp_path: Path, name: str) -> None:
    upstream = RawUpstream()
    async with gateway_to(upstream, tmp_path) as plane:
        client = await plane.connect()
        assert (await client.ask(request_bytes("POST", "/x", f"{name}: evil", body=b"ok"))).status == 200
    assert b"evil" not in upstream.seen[0]


@pytest.mark.parametrize("name", NAMES[:8])
async def test_no_identity_header_of_an_upstream_reaches_a_client(tmp_path: Path, name: str) -> None:
    lines = "".join(f"{each}: evil\r\n" for each in spellings(name))
    answer = f"HTTP/1.1 200 OK\r\n{lines}Content-Length: 2\r\n\r\nok".encode()
    async with gateway_to(RawUpstream(saying(answer)), tmp_path) as plane:
        client = await plane.connect()
        answered = await client.get()
        assert "evil" not in str(answered.headers)
        assert answered.header("x-sallyport-decision") == plane.recorded.entries[0].id
