"""Timings, statistics and traces of requests.

Traces are OpenTelemetry's: one span per request, and one child span per stage. They are off by
default. OpenTelemetry is imported only if the environment enables traces, by OpenTelemetry's own
variables: OTEL_TRACES_EXPORTER=otlp, or an address in OTEL_EXPORTER_OTLP_TRACES_ENDPOINT or
OTEL_EXPORTER_OTLP_ENDPOINT. All other variables have their usual meaning.
https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter, time_ns
from typing import TYPE_CHECKING, NamedTuple, Self

from ..schema.request import MediaType
from .errors import ModelError
from .inference.labels import Quality
from .record import ModelRecord
from .request import SegmentRequest

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_SERVICE = "segserve"


class Interval(NamedTuple):
    """A time interval of one stage, in seconds of `time.perf_counter`."""

    stage: str
    began_s: float
    ended_s: float


@dataclass
class Timings:
    """The time intervals of a request's stages, in order, and descriptions by stage."""

    intervals: list[Interval] = field(default_factory=list)
    descriptions: dict[str, str] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measures the time inside the context. Extends the last interval of the same stage."""
        began_s = perf_counter()
        if self.intervals and self.intervals[-1].stage == name:
            began_s = self.intervals.pop().began_s
        try:
            yield
        finally:
            self.intervals.append(Interval(name, began_s, perf_counter()))

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by stage, in the order in which the stages began."""
        totals: dict[str, float] = {}
        for stage, began_s, ended_s in self.intervals:
            totals[stage] = totals.get(stage, 0.0) + ended_s - began_s
        return totals


UNREAD = "unread"
"""The encoding of a request that failed before its encoding was known."""


@dataclass
class RequestStats:
    """Statistics of one request, filled in as far as the request gets.

    Attributes:
        encoding: of the label map in the response: a value of the option `mask`, or the media type
            if it is not JSON.
        image_bytes: size of the image file.
        pixels: of the image.
        error: code of the error that ended the request, else empty.
    """

    timings: Timings = field(default_factory=Timings)
    encoding: str = UNREAD
    image_bytes: int = 0
    pixels: int = 0
    quality: Quality | None = None
    error: str = ""

    def read(self, request: SegmentRequest) -> None:
        """Records the requested encoding and the size of the image file."""
        in_json = request.media_type is MediaType.JSON
        self.encoding = request.options.mask if in_json else request.media_type.value
        self.image_bytes = len(request.image)


class Tracing:
    """Exports the spans of requests."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer(_SERVICE)
        self._propagator = TraceContextTextMapPropagator()

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self | None:
        """The tracing that the environment enables; None if it enables none.

        Raises:
            ModelError: the exporter or the protocol is not supported, or OpenTelemetry is not
                installed.
        """
        default = "otlp" if any(environment.get(variable) for variable in _ENDPOINTS) else "none"
        exporter = environment.get("OTEL_TRACES_EXPORTER", "").strip() or default
        if exporter == "none":
            return None
        protocols = [environment[variable] for variable in _PROTOCOLS if environment.get(variable)]
        if exporter != "otlp" or protocols[:1] not in ([], ["http/protobuf"]):
            raise ModelError(
                f"the environment requests traces through {exporter!r}; OTEL_TRACES_EXPORTER is "
                "otlp or none, and OTEL_EXPORTER_OTLP_PROTOCOL is http/protobuf"
            )
        try:
            return cls(_provider(environment))
        except ImportError as error:
            raise ModelError(
                f"the environment requests traces, and {error.name} is not installed; "
                "install it with: pip install 'segserve[otel]', or set OTEL_TRACES_EXPORTER=none"
            ) from error

    def trace(
        self, record: ModelRecord, status: int, stats: RequestStats, headers: Mapping[str, object]
    ) -> None:
        """Records a request that has just been completed with this status. The header
        `traceparent`, in any case, names the parent span.
        """
        from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context

        intervals = stats.timings.intervals
        if not intervals:
            return
        lowered = {name.lower(): str(value) for name, value in headers.items()}
        epoch_ns = time_ns() - round(1e9 * perf_counter())

        def at(seconds: float) -> int:
            return epoch_ns + round(1e9 * seconds)

        span = self._tracer.start_span(
            f"segment {record.name}",
            context=self._propagator.extract(lowered),
            kind=SpanKind.SERVER,
            attributes=_attributes(record, status, stats),
            start_time=at(intervals[0].began_s),
        )
        if status >= 500:
            span.set_status(StatusCode.ERROR)
        below = set_span_in_context(span)
        for stage, began_s, ended_s in intervals:
            self._tracer.start_span(stage, context=below, start_time=at(began_s)).end(at(ended_s))
        span.end(at(intervals[-1].ended_s))


def _provider(environment: Mapping[str, str]) -> TracerProvider:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    attributes = environment.get("OTEL_RESOURCE_ATTRIBUTES", "")
    is_named = "OTEL_SERVICE_NAME" in environment or SERVICE_NAME in attributes
    resource = Resource.create({} if is_named else {SERVICE_NAME: _SERVICE})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


def _attributes(record: ModelRecord, status: int, stats: RequestStats) -> dict[str, str | int]:
    """The attributes of a span, named by OpenTelemetry's conventions where a name exists."""
    attributes: dict[str, str | int] = {
        "http.response.status_code": status,
        "segserve.model": record.name,
        "segserve.model_version": record.version,
        "segserve.encoding": stats.encoding,
        "segserve.image_bytes": stats.image_bytes,
        "segserve.image_pixels": stats.pixels,
    }
    if stats.error:
        attributes["error.type"] = stats.error
    return attributes
