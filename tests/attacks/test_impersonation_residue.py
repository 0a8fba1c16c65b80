"""Row "impersonation residue": none of Kubernetes' four Impersonate headers reaches an upstream that trusts the
gateway, with odd keys in Extra neither."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.gateway import RawUpstream, gateway_to, request_bytes

LINES = [
    "Impersonate-User: evil",
    "Impersonate-Group: evil",
    "Impersonate-Uid: evil",
    "Impersonate-Extra-Scopes: evil",
    "Impersonate-Extra-acme.example%2Fproject: evil",
    "Impersonate-Extra-: evil",
    "Impersonate-Extra-a.b_c~d!e: evil",
    "IMPERSONATE_USER: evil",
    "impersonate.extra.x: evil",
    "Impersonate_Extra-X: evil",
]


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("times", [1, 3])
async def test_no_impersonation_passes(tmp_path: Path, line: str, times: int) -> None:
    upstream = RawUpstream()
    async with gateway_to(upstream, tmp_path) as plane:
        client = await plane.connect()
        assert (await client.ask(request_bytes("GET", "/x", *[line] * times))).status == 200
    assert b"evil" not in upstream.seen[0]
    assert b"mpersonate" not in upstream.seen[0]
