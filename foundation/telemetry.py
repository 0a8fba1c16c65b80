"""What the system tells about itself: metrics, traces, logs. One `Telemetry` per process; nothing is global but the
logging tree, which is Python's.

Metrics: parts make their own on `registry`. Traces: `span` costs a few microseconds unless the trace is sampled; spans
go nowhere unless the settings name an OTLP endpoint. Logs: see `foundation.logs`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    Tracer,
    set_span_in_context,
)
from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector

from foundation.faults import Fault
from foundation.fields import Fields
from foundation.randomness import RandomBytes
from foundation.reasons import Reason
from foundation.trace import TraceContext

LEVELS = ("debug", "info", "warning", "error")
_MAX_QUEUE = 2048
_EXPORT_SECONDS = 5
_SCALE = 1 << 56


@dataclass(frozen=True, slots=True)
class TelemetrySettings:
    """The section `telemetry`. `endpoint` is an OTLP/HTTP collector's URL for traces; empty means none. `sample` is the
    share of traces that are recorded, 0 to 1, in thousandths. With `follow_callers` a caller's sampled flag counts too:
    leave it off where callers are not trusted with your collector's disk."""

    service: str = "sallyport"
    log_level: str = "info"
    endpoint: str = ""
    sample: float = 0.01
    follow_callers: bool = False

    @classmethod
    def parse(cls, fields: Fields) -> TelemetrySettings:
        """Raises `Fault(SETTING_INVALID | SETTING_UNKNOWN)`."""
        settings = cls(
            service=fields.text("service", "sallyport", max_length=63),
            log_level=fields.one_of("log_level", LEVELS, "info"),
            endpoint=fields.text("endpoint", "", max_length=1024),
            sample=fields.integer("sample_per_mille", 10, most=1000) / 1000,
            follow_callers=fields.flag("follow_callers", False),
        )
        if settings.endpoint and urlsplit(settings.endpoint).scheme not in ("http", "https"):
            raise fields.fault("endpoint", "expected an http or https URL")
        fields.finish()
        return settings


class Telemetry:
    """The process's metrics registry and tracer. `exporter` replaces the one that the settings name."""

    def __init__(self, settings: TelemetrySettings, exporter: SpanExporter | None = None) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._settings = settings
        self._random = RandomBytes()
        self._provider: TracerProvider | None = None
        if exporter is not None or settings.endpoint:
            self._provider = _provider(settings, exporter or _otlp_exporter(settings.endpoint))
            self._tracer = self._provider.get_tracer("sallyport")

    def span(self, name: str, parent: TraceContext | None = None) -> RecordedSpan | SilentSpan:
        """A span below `parent`, or the first of a new trace. Use it as a context manager, or call `end`."""
        if self._provider is None:
            return SilentSpan(parent or TraceContext.begin(self._random))
        context = parent or TraceContext.begin(self._random)
        if not self._samples(context):
            return SilentSpan(TraceContext(context.trace_id, context.span_id, False))
        above = set_span_in_context(NonRecordingSpan(_span_context(context))) if parent else None
        return RecordedSpan(self._tracer, self._tracer.start_span(name, above, kind=SpanKind.SERVER))

    def close(self) -> None:
        """Send what is left, for at most a few seconds. Blocks: call it last, or in a thread."""
        if self._provider is not None:
            self._provider.shutdown()

    def _samples(self, context: TraceContext) -> bool:
        if self._settings.follow_callers and context.sampled:
            return True
        # By the trace's ID, so that every process of a fleet picks the same traces.
        return int(context.trace_id[-15:-1], 16) < self._settings.sample * _SCALE


class SilentSpan:
    """A span that nobody records. `context` goes on to the next hop."""

    __slots__ = ("context", "recorded")

    def __init__(self, context: TraceContext) -> None:
        self.context = context
        self.recorded = False

    def set(self, name: str, value: str | bool | int | float) -> None:
        """Nothing: nobody looks."""

    def stage(self, name: str) -> None:
        """Nothing: nobody looks."""

    def end(self, error: str = "") -> None:
        """Nothing: it never began."""

    def __enter__(self) -> SilentSpan:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: TracebackType | None) -> None:
        pass


class RecordedSpan:
    """A span that is exported once it ends, with the stages below it. `context` goes on to the next hop: it is that of
    the stage under way."""

    __slots__ = ("_span", "_stage", "_tracer", "context", "recorded")

    def __init__(self, tracer: Tracer, span: Span) -> None:
        self._tracer = tracer
        self._span = span
        self._stage: Span | None = None
        self.recorded = True
        self.context = _trace_context(span)

    def set(self, name: str, value: str | bool | int | float) -> None:
        """An attribute. Never a secret."""
        self._span.set_attribute(name, value)

    def stage(self, name: str) -> None:
        """What is under way from now on, as a span below this one; the stage before is over."""
        if self._stage is not None:
            self._stage.end()
        self._stage = self._tracer.start_span(name, set_span_in_context(self._span), kind=SpanKind.CLIENT)
        self.context = _trace_context(self._stage)

    def end(self, error: str = "") -> None:
        """The span is over, and its last stage; `error` is a reason's code when it failed."""
        if self._stage is not None:
            if error:
                self._stage.set_status(StatusCode.ERROR, error)
            self._stage.end()
        if error:
            self._span.set_status(StatusCode.ERROR, error)
        self._span.end()

    def __enter__(self) -> RecordedSpan:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: TracebackType | None) -> None:
        # An exception's text may hold what a collector must not see; its type or code does not.
        known = error.reason.code if isinstance(error, Fault) else type(error).__name__
        self.end(known if error is not None else "")


def _trace_context(span: Span) -> TraceContext:
    found = span.get_span_context()
    return TraceContext(f"{found.trace_id:032x}", f"{found.span_id:016x}", True)


def _span_context(context: TraceContext) -> SpanContext:
    flags = TraceFlags(TraceFlags.SAMPLED)
    return SpanContext(int(context.trace_id, 16), int(context.span_id, 16), is_remote=True, trace_flags=flags)


def _provider(settings: TelemetrySettings, exporter: SpanExporter) -> TracerProvider:
    provider = TracerProvider(
        sampler=ALWAYS_ON,  # whether to sample is decided before a span is made
        resource=Resource({"service.name": settings.service}),
        shutdown_on_exit=False,
        span_limits=SpanLimits(max_attributes=32, max_attribute_length=1024, max_events=16, max_links=4),
    )
    provider.add_span_processor(
        BatchSpanProcessor(exporter, max_queue_size=_MAX_QUEUE, export_timeout_millis=_EXPORT_SECONDS * 1000)
    )
    return provider


def _otlp_exporter(endpoint: str) -> SpanExporter:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415  # an extra
    except ImportError as error:
        detail = "traces need the extra: pip install 'sallyport[otlp]'"
        raise Fault(Reason.SETTING_INVALID, detail, field="telemetry.endpoint") from error
    logging.getLogger("opentelemetry.exporter").setLevel(logging.WARNING)
    return OTLPSpanExporter(endpoint=endpoint, timeout=_EXPORT_SECONDS)
