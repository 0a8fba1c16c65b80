"""What is authorised is what is forwarded, or it is refused."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.faults import Fault
from foundation.reasons import Reason
from gateway.proxy.normalise import canonical
from policies.model import CanonicalRequest


def of(target: bytes, method: bytes = b"GET", upgrade: bytes = b"") -> CanonicalRequest:
    return canonical(method, target, b"control.example", upgrade)


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"/", ()),
        (b"/a", ("a",)),
        (b"/a/", ("a", "")),
        (b"/v3/kv/range", ("v3", "kv", "range")),
        (b"/a.b/~c_d-e", ("a.b", "~c_d-e")),
        (b"/.well-known/x", (".well-known", "x")),
        (b"/caf%C3%A9", ("café",)),
        (b"/caf%c3%a9", ("café",)),
        (b"/a%20b", ("a b",)),
        (b"/api/v1/nodes/edge-1:proxy", ("api", "v1", "nodes", "edge-1:proxy")),
        (b"/...", ("...",)),
    ],
)
def test_a_path_is_its_decoded_segments(target: bytes, path: tuple[str, ...]) -> None:
    assert of(target).path == path
    assert of(target).target == target


@pytest.mark.parametrize(
    ("query", "pairs"),
    [
        (b"", ()),
        (b"?", ()),
        (b"?a=1&b=2", (("a", "1"), ("b", "2"))),
        (b"?a=1&a=2", (("a", "1"), ("a", "2"))),
        (b"?watch", (("watch", ""),)),
        (b"?a=b%3Dc+d", (("a", "b=c d"),)),
        (b"?path=/etc/../x", (("path", "/etc/../x"),)),
    ],
)
def test_a_query_is_its_decoded_pairs(query: bytes, pairs: tuple[tuple[str, str], ...]) -> None:
    assert of(b"/x" + query).query == pairs


@pytest.mark.parametrize(
    ("method", "upgrade", "action"),
    [
        (b"GET", b"", "get"),
        (b"HEAD", b"", "get"),
        (b"POST", b"", "create"),
        (b"PUT", b"", "update"),
        (b"PATCH", b"", "patch"),
        (b"DELETE", b"", "delete"),
        (b"GET", b"websocket", "create"),
    ],
)
def test_the_action_is_the_methods_or_create_for_what_opens_a_channel(
    method: bytes, upgrade: bytes, action: str
) -> None:
    assert of(b"/x", method, upgrade).action == action


def test_a_memory_of_requests_does_not_mix_them_up() -> None:
    assert of(b"/x", b"GET") == of(b"/x", b"GET")
    assert of(b"/x", b"GET", b"websocket").action != of(b"/x", b"GET").action
    assert canonical(b"GET", b"/x", b"other.example", b"").host == "other.example"


@given(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=5))
@settings(max_examples=300, deadline=None)
def test_what_is_accepted_decodes_to_what_was_meant(segments: list[str]) -> None:
    target = ("/" + "/".join(quote(segment, safe="") for segment in segments)).encode("ascii", "replace")
    try:
        request = of(target)
    except (Fault, UnicodeEncodeError):
        return
    assert list(request.path) == segments
    assert request.target == target


@given(st.binary(max_size=64))
@settings(max_examples=500, deadline=None)
def test_any_bytes_are_a_request_or_a_fault(raw: bytes) -> None:
    try:
        request = of(b"/" + raw)
    except Fault as fault:
        if fault.reason is not Reason.PATH_AMBIGUOUS:
            raise
        return
    assert request.target == b"/" + raw
    assert not {".", ".."} & set(request.path)
    assert "" not in request.path[:-1]
    assert not any(set(segment) & set("/\\;#?\0") for segment in request.path)
