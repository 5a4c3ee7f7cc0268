"""Traces: whether the environment requests them, what they hold, and that they arrive at a
collector.
"""

import os
import subprocess
import sys

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from segserve.runtime.errors import ModelError
from segserve.runtime.telemetry import Interval, RequestStats, Timings, Tracing
from tests.collector import running_collector

from .images import encoded, smooth
from .tiny import tiny_record

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def exporter():
    return InMemorySpanExporter()


@pytest.fixture
def tracing(exporter):
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return Tracing(provider)


def test_trace_request_has_a_span_a_stage_below_its_own(tiny_pipeline, tracing, exporter):
    stats = tiny_pipeline.respond(
        {"body": encoded(smooth(40, 60))}, {"X-Segment-Mask": "rle"}
    ).stats
    tracing.trace(tiny_record(), 200, stats, {"Traceparent": PARENT})
    *stages, request = exporter.get_finished_spans()
    assert [span.name for span in stages] == ["decode", "preprocess", "inference", "encode"]
    assert {span.parent.span_id for span in stages} == {request.context.span_id}
    assert (request.name, request.kind) == ("segment tiny", SpanKind.SERVER)
    assert f"{request.context.trace_id:032x}" == PARENT.split("-")[1]
    assert f"{request.parent.span_id:016x}" == PARENT.split("-")[2]
    assert request.attributes["http.response.status_code"] == 200
    assert request.attributes["segserve.encoding"] == "rle"
    assert request.attributes["segserve.image_pixels"] == 2400
    assert "error.type" not in request.attributes
    assert (request.start_time, request.end_time) == (stages[0].start_time, stages[-1].end_time)


def test_trace_spans_last_as_long_as_their_stages(tracing, exporter):
    timings = Timings(
        [
            Interval("preprocess", 1, 1.5),
            Interval("inference", 1.5, 2.5),
            Interval("preprocess", 2.5, 3),
        ]
    )
    tracing.trace(tiny_record(), 200, RequestStats(timings), {})
    *stages, request = exporter.get_finished_spans()
    assert [(span.end_time - span.start_time) / 1e9 for span in stages] == pytest.approx(
        [0.5, 1.0, 0.5]
    )
    assert (request.end_time - request.start_time) / 1e9 == pytest.approx(2)
    assert request.parent is None


@pytest.mark.parametrize(
    ("body", "status", "expected"),
    [(b"text", 415, StatusCode.UNSET), (b"text", 500, StatusCode.ERROR)],
    ids=["the client's fault", "ours"],
)
def test_trace_error_is_named_and_only_ours_marks_the_span(
    tiny_pipeline, tracing, exporter, body, status, expected
):
    stats = tiny_pipeline.respond({"body": body}, {}).stats
    tracing.trace(tiny_record(), status, stats, {})
    decode, request = exporter.get_finished_spans()
    assert decode.name == "decode"
    assert request.attributes["error.type"] == "image_unsupported"
    assert request.status.status_code is expected


@pytest.mark.parametrize(
    "parent", ["nonsense", "", "00-0-0-01"], ids=["nonsense", "empty", "too short"]
)
def test_trace_traceparent_that_is_none_begins_a_trace(tracing, exporter, parent):
    tracing.trace(
        tiny_record(),
        200,
        RequestStats(Timings([Interval("decode", 0, 1)])),
        {"traceparent": parent},
    )
    assert exporter.get_finished_spans()[-1].parent is None


def test_trace_request_that_is_not_sampled_leaves_no_span(tracing, exporter):
    stats = RequestStats(Timings([Interval("decode", 0, 1)]))
    tracing.trace(tiny_record(), 200, stats, {"traceparent": PARENT.removesuffix("01") + "00"})
    assert exporter.get_finished_spans() == ()


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_SERVICE_NAME": "x"},
        {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
    ],
    ids=["nothing set", "only a name", "none", "empty endpoint"],
)
def test_from_environment_without_traces_is_none(environment):
    assert Tracing.from_environment(environment) is None


@pytest.mark.parametrize(
    "environment",
    [
        {"OTEL_TRACES_EXPORTER": "zipkin"},
        {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
    ],
    ids=["exporter", "protocol"],
)
def test_from_environment_unknown_exporter_or_protocol_says_which_there_are(environment):
    with pytest.raises(
        ModelError,
        match=r"traces through '\w+'; OTEL_TRACES_EXPORTER is otlp or none",
    ):
        Tracing.from_environment(environment)


def test_from_environment_without_the_exporter_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(
        ModelError, match=r"pip install 'segserve\[otel\]', or set OTEL_TRACES_EXPORTER=none"
    ):
        Tracing.from_environment({"OTEL_TRACES_EXPORTER": "otlp"})


def test_handler_without_traces_imports_nothing_of_opentelemetry():
    code = (
        "import sys, handler; from segserve.runtime.telemetry import Tracing; "
        "Tracing.from_environment({}); "
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout == "[]\n"


def test_from_environment_endpoint_gets_the_spans(monkeypatch, tiny_pipeline):
    monkeypatch.delenv("OTEL_SERVICE_NAME", raising=False)
    stats = tiny_pipeline.respond({"body": encoded(smooth(40, 60))}, {}).stats
    with running_collector() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        tracing = Tracing.from_environment(os.environ)
        tracing.trace(tiny_record(), 200, stats, {"traceparent": PARENT})
        tracing._provider.shutdown()
    assert collector.services == {"segserve"}
    assert [span.name for span in collector.spans] == [
        "decode",
        "preprocess",
        "inference",
        "encode",
        "segment tiny",
    ]
    assert {span.trace_id.hex() for span in collector.spans} == {PARENT.split("-")[1]}


def test_from_environment_service_of_its_own_name_keeps_it(monkeypatch):
    monkeypatch.setenv("OTEL_SERVICE_NAME", "street")
    with running_collector() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        tracing = Tracing.from_environment(os.environ)
        tracing.trace(tiny_record(), 200, RequestStats(Timings([Interval("decode", 0, 1)])), {})
        tracing._provider.shutdown()
    assert collector.services == {"street"}
