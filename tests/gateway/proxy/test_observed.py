"""What an exchange tells: spans when its trace is recorded, an exemplar of it, and its line of the access log."""

from __future__ import annotations

import asyncio
from pathlib import Path

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from prometheus_client.openmetrics.exposition import generate_latest

from foundation.telemetry import Telemetry, TelemetrySettings
from gateway.access.lines import Access
from gateway.metrics import GatewayMetrics
from tests.fakes.trust import DENY
from tests.support.gateway import DataPlane, RawUpstream, gateway_to, request_bytes

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def observed(plane: DataPlane, sample: float = 1.0) -> tuple[Telemetry, InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    telemetry = Telemetry(TelemetrySettings(sample=sample), exporter)
    plane.services.spans = telemetry.span
    plane.services.metrics = GatewayMetrics(telemetry.registry)
    return telemetry, exporter


def parent(span: ReadableSpan) -> int:
    return span.parent.span_id if span.parent is not None else 0


async def test_the_tree_of_a_recorded_trace(tmp_path: Path) -> None:
    upstream = RawUpstream()
    async with gateway_to(upstream, tmp_path) as plane:
        telemetry, exporter = observed(plane)
        client = await plane.connect()
        assert (await client.ask(request_bytes("GET", "/a", f"traceparent: {CALLER}", "tracestate: a=b"))).status == 200
        await asyncio.to_thread(telemetry.close)
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert set(spans) == {"handshake", "exchange", "decide", "dial", "upstream"}
    exchange = spans["exchange"]
    assert exchange.context is not None
    assert f"{parent(exchange):016x}" == CALLER.split("-")[2]
    assert {parent(spans[name]) for name in ("decide", "dial", "upstream")} == {exchange.context.span_id}
    assert spans["decide"].end_time == spans["dial"].start_time or (spans["decide"].end_time or 0) <= (
        spans["dial"].start_time or 0
    )
    # The upstream's own spans stand below the stage that asked it.
    (head,) = upstream.seen
    context = spans["upstream"].context
    assert context is not None
    assert f"traceparent: 00-{context.trace_id:032x}-{context.span_id:016x}-01\r\ntracestate: a=b\r\n".encode() in head
    attributes = exchange.attributes or {}
    assert attributes["sallyport.route"] == "api"
    assert attributes["sallyport.reason"] == "granted"
    assert attributes["sallyport.identity"] == "spiffe://fleet.example/node/edge-1"
    exemplar = f'trace_id="{CALLER.split("-")[1]}"'
    assert exemplar in generate_latest(telemetry.registry).decode()


async def test_a_denial_ends_in_its_decision(tmp_path: Path) -> None:
    async with gateway_to(RawUpstream(), tmp_path) as plane:
        telemetry, exporter = observed(plane)
        plane.engine.answer = lambda query: DENY
        client = await plane.connect()
        assert (await client.get()).status == 403
        await asyncio.to_thread(telemetry.close)
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert set(spans) == {"handshake", "exchange", "decide"}
    assert spans["exchange"].status.status_code is StatusCode.ERROR
    assert spans["exchange"].parent is None
    assert spans["decide"].status.description == "no_grant"


async def test_a_trace_that_is_not_sampled_leaves_nothing(tmp_path: Path) -> None:
    upstream = RawUpstream()
    async with gateway_to(upstream, tmp_path) as plane:
        telemetry, exporter = observed(plane, sample=0.0)
        client = await plane.connect()
        assert (await client.ask(request_bytes("GET", "/a", f"traceparent: {CALLER}"))).status == 200
        await asyncio.to_thread(telemetry.close)
    assert exporter.get_finished_spans() == ()
    assert CALLER[:36].encode() in upstream.seen[0]  # the trace goes on
    assert "trace_id" not in generate_latest(telemetry.registry).decode()


async def test_requests_and_refusals_are_in_the_access_log(tmp_path: Path) -> None:
    async with gateway_to(RawUpstream(), tmp_path) as plane:
        seen: list[Access] = []
        plane.services.access = seen.append
        client = await plane.connect()
        agent = "User-Agent: edge/1"
        assert (await client.ask(request_bytes("POST", "/a?k=v", agent, body=b"12345"))).status == 200
        assert (await client.ask(request_bytes("GET", "/a//b"))).status == 400
    first, second = seen
    assert (first.method, first.target, first.protocol, first.status) == (b"POST", b"/a?k=v", "HTTP/1.1", 200)
    assert (first.address, first.identity) == ("127.0.0.1", "spiffe://fleet.example/node/edge-1")
    assert (first.received, first.sent, first.agent) == (5, 2, b"edge/1")
    assert (first.route, first.reason, first.upstream) == (
        "api",
        "granted",
        str(plane.routes[0].destinations[0].address),
    )
    assert first.decision == plane.recorded.entries[0].id
    assert (second.target, second.status, second.reason, second.route) == (b"/a//b", 400, "path_ambiguous", "")
