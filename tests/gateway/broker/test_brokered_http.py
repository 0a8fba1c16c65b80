"""HTTP between nodes: each request is decided, by its method and path, with both ends in the input."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from foundation.identity import Revocation
from foundation.reasons import Reason
from policies.model import Answer, Query
from tests.fakes.trust import ALLOW, DENY, spiffe
from tests.support.brokered import HTTP_ROUTE, BrokeredPlane, Node, Use, settled

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[BrokeredPlane]:
    async with BrokeredPlane(tmp_path, (HTTP_ROUTE,)).running() as plane:
        yield plane


@pytest.fixture
async def nodes(plane: BrokeredPlane) -> tuple[Node, Node]:
    return await plane.node("a"), await plane.node("b")


def get(path: str, *lines: str) -> bytes:
    return "\r\n".join((f"GET {path} HTTP/1.1", "Host: web", *lines, "", "")).encode()


async def asked(use: Use, request: bytes) -> bytes:
    """The answer to `request`, head and body."""
    use.data.clear()
    use.write(request)
    await settled(lambda: use.cut is not None or use.has_ended or _is_whole(bytes(use.data)))
    return bytes(use.data)


def _is_whole(raw: bytes) -> bool:
    head, end, body = raw.partition(b"\r\n\r\n")
    lines = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return bool(end) and len(body) >= int(lines[0][15:])


async def serve(node: Node, answer: bytes = OK) -> None:
    """Answer the next request that reaches `node`, whichever stream it comes by."""
    await settled(lambda: any(b"\r\n\r\n" in use.data for use in node.calls))
    use = next(use for use in node.calls if b"\r\n\r\n" in use.data)
    use.data.clear()
    use.write(answer)


async def test_a_request_reaches_the_target_and_its_answer_comes_back(nodes: tuple[Node, Node]) -> None:
    a, b = nodes
    use = await a.reach("b", "web", "http")
    assert not b.calls  # nothing is asked of the target before a request is permitted
    use.write(get("/metrics"))
    await settled(lambda: bool(b.calls) and b"\r\n\r\n" in b.calls[0].data)
    (call,) = b.calls
    assert call.call is not None
    assert (call.call.protocol, call.call.service) == ("http", "web")
    assert call.data.startswith(b"GET /metrics HTTP/1.1\r\n")
    assert f"x-sallyport-identity: {spiffe('a')}".encode() in call.data
    call.write(OK)
    await settled(lambda: bytes(use.data).endswith(b"ok"))
    assert use.data.startswith(b"HTTP/1.1 200 OK\r\n")


async def test_each_request_is_decided_with_both_ends(plane: BrokeredPlane, nodes: tuple[Node, Node]) -> None:
    a, b = nodes
    seen: list[Query] = []

    def only_metrics(query: Query) -> Answer:
        seen.append(query)
        return ALLOW if query.request.path == ("metrics",) else DENY

    plane.engine.answer = only_metrics
    use = await a.reach("b", "web", "http")
    refused = await asked(use, get("/admin"))
    assert refused.startswith(b"HTTP/1.1 403 ")
    assert Reason.NO_GRANT.code.encode() in refused
    assert not b.calls
    use.data.clear()
    use.write(get("/metrics"))
    await serve(b)
    await settled(lambda: bytes(use.data).endswith(b"ok"))
    assert all(query.target is not None and query.target.id == spiffe("b") for query in seen)
    assert [query.request.method for query in seen] == ["GET", "GET"]
    assert {entry.route for entry in plane.recorded.entries} == {"web"}


async def test_streams_to_the_target_are_used_again(nodes: tuple[Node, Node]) -> None:
    a, b = nodes
    use = await a.reach("b", "web", "http")
    for _ in range(3):
        use.data.clear()
        use.write(get("/metrics"))
        await serve(b)
        await settled(lambda: bytes(use.data).endswith(b"ok"))
    assert len(b.calls) == 1


async def test_identity_headers_of_the_client_are_removed(nodes: tuple[Node, Node]) -> None:
    a, b = nodes
    use = await a.reach("b", "web", "http")
    use.write(get("/", "X-Sallyport-Identity: spiffe://fleet.example/operator/root"))
    await settled(lambda: bool(b.calls) and b"\r\n\r\n" in b.calls[0].data)
    assert b"operator/root" not in b.calls[0].data


async def test_an_ambiguous_request_is_refused(nodes: tuple[Node, Node]) -> None:
    a, b = nodes
    use = await a.reach("b", "web", "http")
    answer = await asked(use, get("/", "Content-Length: 1", "Transfer-Encoding: chunked"))
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert not b.calls


async def test_a_target_that_refuses_is_told_of(nodes: tuple[Node, Node]) -> None:
    a, b = nodes
    b.check = lambda call: Reason.SERVICE_NOT_OFFERED
    use = await a.reach("b", "web", "http")
    assert Reason.SERVICE_NOT_OFFERED.code.encode() in await asked(use, get("/"))


@pytest.mark.parametrize("name", ["a", "b"])
async def test_a_revocation_cuts_an_answer_under_way(plane: BrokeredPlane, nodes: tuple[Node, Node], name: str) -> None:
    a, b = nodes
    use = await a.reach("b", "web", "http")
    use.write(get("/watch"))
    await serve(b, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
    await settled(lambda: b"one" in use.data)
    plane.store.apply(Revocation(1, spiffe(name), "", "key_compromise", plane.clock.now()))
    await settled(lambda: use.cut is not None and b.calls[0].cut is not None)
    assert plane.registry.open_count == 0


async def test_a_large_answer_is_held_back_by_a_reader_that_does_not_read(nodes: tuple[Node, Node]) -> None:
    a, b = nodes
    use = await a.reach("b", "web", "http")
    use.reads = False
    use.write(get("/large"))
    size = 32 << 20
    await serve(b, b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
    call = b.calls[0]
    for _ in range(size >> 20):
        call.write(b"x" * (1 << 20))
    await settled(lambda: len(use.data) >= 256 << 10)
    assert call.sent_bytes < 8 << 20
    use.reads = True
    assert use.stream is not None
    use.stream.consumed(len(use.data))
    await settled(lambda: len(use.data) > size)


async def test_a_request_over_a_relay_between_workers(tmp_path: Path) -> None:
    first = BrokeredPlane(tmp_path, (HTTP_ROUTE,), worker=1)
    second = BrokeredPlane(tmp_path, (HTTP_ROUTE,), worker=2, like=first)
    async with first.running(), second.running():
        first.know("b")
        second.know("a")
        a, b = await first.node("a"), await second.node("b")
        use = await a.reach("b", "web", "http")
        use.write(get("/metrics"))
        await serve(b)
        await settled(lambda: bytes(use.data).endswith(b"ok"))
        assert first.recorded.entries[-1].target == "/metrics"
        assert second.recorded.entries[-1].target == "/metrics"
        second.engine.answer = lambda query: DENY
        second.publish(revision=2)
        assert Reason.NO_GRANT.code.encode() in await asked(use, get("/metrics"))
