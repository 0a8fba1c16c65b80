"""An exchange is a span of its caller's trace, and the upstream's request is below it."""

from __future__ import annotations

from pathlib import Path

from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from foundation.telemetry import Telemetry, TelemetrySettings
from tests.fakes.trust import DENY
from tests.support.gateway import RawUpstream, gateway_to, request_bytes

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


async def test_an_exchange_is_traced_through_to_its_upstream(tmp_path: Path) -> None:
    exporter, upstream = InMemorySpanExporter(), RawUpstream()
    telemetry = Telemetry(TelemetrySettings(sample=1.0), exporter)
    async with gateway_to(upstream, tmp_path) as plane:
        plane.services.spans = telemetry.span
        client = await plane.connect()
        await client.ask(request_bytes("GET", "/x", f"traceparent: 00-{TRACE}-{CALLER}-01", "tracestate: a=b"))
        plane.engine.answer = lambda query: DENY
        await client.get()
    telemetry.close()
    permitted, denied = exporter.get_finished_spans()
    assert f"{permitted.get_span_context().trace_id:032x}" == TRACE
    assert permitted.parent is not None
    assert f"{permitted.parent.span_id:016x}" == CALLER
    attributes = dict(permitted.attributes or {})
    assert (attributes["sallyport.route"], attributes["sallyport.reason"]) == ("api", "granted")
    assert attributes["http.response.status_code"] == 200
    own = f"{permitted.get_span_context().span_id:016x}"
    assert f"traceparent: 00-{TRACE}-{own}-01\r\ntracestate: a=b\r\n".encode() in upstream.seen[0]
    assert denied.parent is None
    assert denied.status.description == "no_grant"
