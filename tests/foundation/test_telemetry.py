"""Metrics of one process do not leak into another's, traces follow W3C Trace Context, and go where settings say."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from prometheus_client import Counter, generate_latest

from foundation.faults import Fault
from foundation.fields import Fields
from foundation.reasons import Reason
from foundation.telemetry import Telemetry, TelemetrySettings
from foundation.trace import TraceContext

HEADER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
ALL = TelemetrySettings(sample=1.0)


def test_each_registry_is_its_own() -> None:
    one, two = Telemetry(TelemetrySettings()), Telemetry(TelemetrySettings())
    Counter("sallyport_things", "Things.", registry=one.registry).inc()
    assert b"sallyport_things_total 1.0" in generate_latest(one.registry)
    assert b"sallyport_things" not in generate_latest(two.registry)


def test_traceparent_goes_through() -> None:
    context = TraceContext.parse(HEADER)
    assert context == TraceContext("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", True)
    assert context.header() == HEADER
    assert TraceContext.parse(HEADER[:-2] + "00-later".replace("-later", "")) is not None
    assert TraceContext.parse("cc" + HEADER[2:] + "-what-is-new") == context


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        HEADER.upper(),
        HEADER + "-x",
        "ff" + HEADER[2:],
        "00-" + "0" * 32 + HEADER[35:],
        HEADER[:36] + "0" * 16 + "-01",
        HEADER[:-1],
        HEADER + "\n",
        "cc" + HEADER[2:] + "-" + "x" * 600,
    ],
)
def test_a_broken_traceparent_begins_a_new_trace(header: str | None) -> None:
    assert TraceContext.parse(header) is None


@given(st.text(max_size=80))
def test_no_text_breaks_the_parser(text: str) -> None:
    context = TraceContext.parse(text)
    assert context is None or TraceContext.parse(context.header()) == context


def test_a_sampled_trace_is_recorded_below_its_caller() -> None:
    exporter = InMemorySpanExporter()
    telemetry = Telemetry(ALL, exporter)
    caller = TraceContext.parse(HEADER)
    with telemetry.span("exchange", caller) as outer:
        outer.set("route", "fleet")
        with telemetry.span("upstream", outer.context):
            pass
    with pytest.raises(Fault), telemetry.span("refused"):
        raise Fault(Reason.NO_GRANT, "hush")
    telemetry.close()
    inner, exchange, refused = exporter.get_finished_spans()
    assert exchange.parent is not None
    assert f"{exchange.parent.span_id:016x}" == "b7ad6b7169203331"
    assert inner.parent is not None
    assert exchange.context is not None
    assert inner.parent.span_id == exchange.context.span_id
    assert exchange.attributes == {"route": "fleet"}
    assert (refused.status.status_code, refused.status.description) == (StatusCode.ERROR, "no_grant")
    assert not refused.events


def test_an_unsampled_trace_goes_on_but_is_not_recorded() -> None:
    exporter = InMemorySpanExporter()
    telemetry = Telemetry(TelemetrySettings(sample=0.0), exporter)
    caller = TraceContext.parse(HEADER)
    with telemetry.span("exchange", caller) as span:
        span.set("route", "fleet")
        assert span.context.header() == HEADER[:-2] + "00"
    telemetry.close()
    assert exporter.get_finished_spans() == ()


def test_a_callers_wish_counts_only_where_settings_say_so() -> None:
    for follow in (True, False):
        exporter = InMemorySpanExporter()
        telemetry = Telemetry(TelemetrySettings(sample=0.0, follow_callers=follow), exporter)
        with telemetry.span("exchange", TraceContext.parse(HEADER)):
            pass
        telemetry.close()
        assert len(exporter.get_finished_spans()) == follow


def test_the_share_that_is_sampled() -> None:
    telemetry = Telemetry(TelemetrySettings(sample=0.25), InMemorySpanExporter())
    taken = sum(telemetry.span("x").context.sampled for _ in range(2000))
    telemetry.close()
    assert 350 < taken < 650


async def test_spans_reach_a_collector() -> None:
    bodies: list[bytes] = []

    async def collect(request: web.Request) -> web.Response:
        bodies.append(await request.read())
        return web.Response()

    app = web.Application()
    app.router.add_post("/v1/traces", collect)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        endpoint = f"http://127.0.0.1:{runner.addresses[0][1]}/v1/traces"
        telemetry = Telemetry(TelemetrySettings(endpoint=endpoint, sample=1.0))
        with telemetry.span("exchange"):
            pass
        await asyncio.to_thread(telemetry.close)
    finally:
        await runner.cleanup()
    assert len(bodies) == 1


@pytest.mark.parametrize(
    "section",
    [{"endpoint": "file:///etc"}, {"sample_per_mille": 1001}, {"log_level": "loud"}, {"unknown": 1}],
)
def test_wrong_settings_are_refused(section: dict[str, object]) -> None:
    fields = Fields(section, "telemetry", Reason.SETTING_INVALID, unknown=Reason.SETTING_UNKNOWN)
    with pytest.raises(Fault):
        TelemetrySettings.parse(fields)
