"""Row "path confusion" (CVE-2021-29492, CVE-2021-32779, CVE-2026-73553): what is authorised is what is forwarded, byte
for byte, and a real upstream acts on the path that policy saw; or the request is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from foundation.reasons import Reason
from tests.support.gateway import DataPlane, RawUpstream, gateway_to, route
from tests.support.upstreams import nginx

REFUSED = [
    "/a%2Fb",
    "/a%2fb",
    "/a/..%2f..%2fadmin",
    "/a%5Cb",
    "/a\\b",
    "/a;x=1/b",
    "/a/..;/admin",
    "/a%3Bx/b",
    "/a#b",
    "/a%23b",
    "/a%3Fb",
    "//admin",
    "/a//b",
    "/./a",
    "/a/.",
    "/a/./b",
    "/../admin",
    "/a/..",
    "/a/../admin",
    "/a/%2e%2e/admin",
    "/a/%2E%2e/admin",
    "/a/.%2e/admin",
    "/a/%2e/b",
    "/a%00",
    "/a%0a",
    "/a%0d%0ab",
    "/a%7f",
    "/%c0%afadmin",
    "/%c0%ae%c0%ae/admin",
    "/%e0%80%af",
    "/%ed%a0%80",
    "/%ff",
    "/%252e%252e/admin",
    "/a%252fb",
    "/a%25%32%66b",
    "/%",
    "/%2",
    "/%zz",
    "/%u002e",
    "/a b",
    '/"a"',
    "/a|b",
    "/{a}",
    "/%EF%BC%8Fadmin",
    "/%EF%BC%8E%EF%BC%8E/admin",
    "/%E2%80%A5/admin",
    "/cafe%CC%81",
    "/%C2%85",
    "/%E2%80%8B",
    "/a?x=1;admin=1",
    "/a?x=%00",
    "/a?x=%ff",
    "/a?x=\\",
    "*",
    "http://control.example/a",
    "http://other.example/a",
    "//other.example/a",
    "a/b",
    "?a",
    "control.example:443",
]
KEPT = [
    "/",
    "/a",
    "/a/",
    "/a%20b",
    "/%61dmin",
    "/caf%C3%A9",
    "/caf%c3%A9",
    "/a:b@c,d=e+f!$&'()*",
    "/...",
    "/.a",
    "/a.",
    "/%E6%97%A5%E6%9C%AC",
    "/a?b=/../c&d=%2F..%2F",
    "/a?http://x/?y",
]


@pytest.mark.parametrize("target", REFUSED)
async def test_a_path_with_two_readings_is_refused(tmp_path: Path, target: str) -> None:
    upstream = RawUpstream()
    async with gateway_to(upstream, tmp_path) as plane:
        client = await plane.connect()
        answered = await client.get(target)
        assert answered.reason in {Reason.PATH_AMBIGUOUS.code, Reason.REQUEST_MALFORMED.code}
    assert upstream.dials == 0


async def test_a_real_upstream_acts_on_the_path_that_policy_saw(tmp_path: Path) -> None:
    async with nginx(tmp_path) as seen:
        plane = DataPlane(tmp_path, (route(seen.address),))
        plane.engine.cached = False
        async with plane.running():
            client = await plane.connect()
            for target in KEPT:
                answered = await client.get(target)
                assert (answered.status, answered.body.decode()) == (200, f"GET {target}\n")
            decided = ["/" + "/".join(query.request.path) for query in plane.engine.asked]
            assert [query.request.target.decode() for query in plane.engine.asked] == KEPT
            assert seen.all() == [f"GET {target}" for target in KEPT]
            assert [_unescaped(path) for path in seen.decoded()] == decided


def _unescaped(logged: str) -> str:
    """nginx writes bytes above 127 as `\\xHH` into its log."""
    return logged.encode("ascii").decode("unicode_escape").encode("latin-1").decode("utf-8")
