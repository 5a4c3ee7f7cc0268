"""Declares every metric of a server, and reports those of requests.

The handler reports the metrics in `OWN`, in the same way on every engine. The engine counts the
metrics in `ENGINE`: TorchServe itself, or the gateway of Ray Serve. TorchServe's metrics file and
the gateway's collectors derive from this module. Tests check docs/metrics.md, the dashboard and the
alert rules against it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Protocol

import psutil

if TYPE_CHECKING:
    from .encode.response import Response
    from .inference.labels import Quality
    from .record import ModelRecord
    from .telemetry import RequestStats, Tracing

logger = logging.getLogger(__name__)


class Kind(StrEnum):
    """The Prometheus type of a metric, named as in TorchServe's metrics file."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True)
class Metric:
    """The declaration of a metric. The engine adds the host's name under `host_label`."""

    name: str
    kind: Kind
    unit: str
    description: str
    labels: tuple[str, ...]
    host_label: str = "Hostname"


# Upper bounds of every histogram. They are TorchServe's and cannot be set. Hence the units are
# seconds, megapixels and ratios.
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)

_MODEL = ("model_name", "model_version")

_own: list[Metric] = []


def _of_model(kind: Kind, name: str, unit: str, description: str, *labels: str) -> Metric:
    metric = Metric(name, kind, unit, description, (*_MODEL, *labels))
    _own.append(metric)
    return metric


_counter, _gauge, _histogram = (partial(_of_model, kind) for kind in Kind)

WORKER_STARTS = _counter(
    "segserve_worker_starts_total", "Count", "Workers that have loaded the model."
)
REQUESTS = _counter(
    "segserve_requests_total",
    "Count",
    "Requests that a worker completed, by HTTP status, encoding of the response and error code.",
    *("status", "encoding", "error"),
)
REQUEST_SECONDS = _histogram(
    "segserve_request_seconds",
    "Seconds",
    "From when a worker has a batch until its responses are complete.",
)
STAGE_SECONDS = _histogram(
    "segserve_stage_seconds", "Seconds", "Time of a request in one stage of Server-Timing.", "stage"
)
BATCH_SIZE = _histogram("segserve_batch_size", "Count", "Requests that a worker got together.")
IMAGE_MEGAPIXELS = _histogram("segserve_image_megapixels", "Megapixels", "Size of a decoded image.")
IMAGE_BYTES = _counter(
    "segserve_image_bytes_total", "Bytes", "Image files received, after base64 is decoded."
)
RESPONSE_BYTES = _counter(
    "segserve_answer_bytes_total", "Bytes", "Bodies of responses, errors included."
)
MEMORY_BYTES = _gauge(
    "segserve_memory_bytes", "Bytes", "Resident memory of the worker that responded last."
)
GPU_MEMORY_BYTES = _gauge(
    "segserve_gpu_memory_bytes",
    "Bytes",
    "GPU memory that PyTorch holds in the worker that responded last.",
    "gpu",
)
CLASS_COVERAGE = _counter(
    "segserve_class_coverage_total",
    "Images",
    "Sum over images of the share of pixels that the network gives this class.",
    "class",
)
CONFIDENCE = _histogram(
    "segserve_confidence_ratio", "Ratio", "Mean over an image's pixels of the top probability."
)
ENTROPY = _histogram(
    "segserve_entropy_ratio",
    "Ratio",
    "Mean over an image's pixels of the entropy, as a share of the largest possible.",
)
BACKGROUND_ONLY = _counter(
    "segserve_background_only_total",
    "Images",
    "Images in which the network sees nothing but background.",
)

OWN = tuple(_own)


def _of_requests(name: str, unit: str, description: str) -> Metric:
    return Metric(name, Kind.COUNTER, unit, description, _MODEL, host_label="hostname")


def _of_host(name: str, kind: Kind, unit: str, description: str, *labels: str) -> Metric:
    return Metric(name, kind, unit, description, (*labels, "Level"))


ENGINE = (
    _of_requests("ts_inference_requests_total", "Count", "Requests for predictions."),
    _of_requests(
        "ts_inference_latency_microseconds", "Microseconds", "From request to response, total."
    ),
    _of_requests(
        "ts_queue_latency_microseconds", "Microseconds", "Until a worker had the request, total."
    ),
    *(
        _of_host(
            f"Requests{digit}XX",
            Kind.COUNTER,
            "Count",
            f"Responses with a status of {digit}00 to {digit}99, of any path.",
        )
        for digit in (2, 4, 5)
    ),
    _of_host("QueueTime", Kind.GAUGE, "Milliseconds", "Until a worker had the last request."),
    _of_host(
        "PredictionTime", Kind.GAUGE, "Milliseconds", "The last batch in the handler.", "ModelName"
    ),
    _of_host("CPUUtilization", Kind.GAUGE, "Percent", "Processor of the machine."),
    _of_host("MemoryUsed", Kind.GAUGE, "Megabytes", "Memory of the machine in use."),
    _of_host("MemoryAvailable", Kind.GAUGE, "Megabytes", "Memory of the machine that is free."),
    _of_host("MemoryUtilization", Kind.GAUGE, "Percent", "Memory of the machine in use."),
    _of_host("DiskUsage", Kind.GAUGE, "Gigabytes", "Disk of the machine in use."),
    _of_host("DiskAvailable", Kind.GAUGE, "Gigabytes", "Disk of the machine that is free."),
    _of_host("DiskUtilization", Kind.GAUGE, "Percent", "Disk of the machine in use."),
)


_LABELS = {metric.name: metric.labels for metric in OWN}

# TorchServe reads a metric as a line of text, in which these characters have a meaning.
_NOT_IN_A_LABEL = str.maketrans("|,:#\n\r", "______")


class Sink(Protocol):
    """A metric of the server, as `ts.metrics.caching_metric.CachingMetric`."""

    dimension_names: Sequence[str]

    def add_or_update(self, value: float, dimension_values: list[str]) -> None: ...


class MetricsCache(Protocol):
    """The part of `context.metrics` that is used."""

    @property
    def cache(self) -> Mapping[object, Mapping[str, Sink]]: ...


class Telemetry:
    """Reports the metrics and traces of one worker.

    Args:
        device: what computes: `cpu`, or for example `cuda:0`.
        server: the metrics that the server declares; others are not reported.
    """

    def __init__(
        self,
        record: ModelRecord,
        device: str,
        server: MetricsCache | None,
        tracing: Tracing | None = None,
    ) -> None:
        self._record = record
        self._device = device
        self._model = (_label(record.name), _label(record.version))
        self._sinks = _sinks(server)
        self._tracing = tracing
        self._process = psutil.Process()

    def loaded(self) -> None:
        """Reports the start, and 0 for counters that would be missing until their first event."""
        if not self._sinks:
            logger.info(
                "the server's metrics file names none of segserve's metrics: none are reported"
            )
        self._report(WORKER_STARTS, 1)
        self._report(BACKGROUND_ONLY, 0)
        for label in self._record.labels:
            self._report(CLASS_COVERAGE, 0, label)
        self._report_memory()

    def responded(
        self,
        responses: Sequence[Response],
        headers: Sequence[Mapping[str, object]],
        *,
        seconds: float,
    ) -> None:
        """Reports the requests of a batch that took so many seconds. The headers are for traces."""
        reported = [
            (reply, reply.stats, given)
            for reply, given in zip(responses, headers, strict=True)
            if reply.stats is not None
        ]
        if reported:
            self._report(BATCH_SIZE, len(reported))
            self._report_memory()
        for reply, stats, given in reported:
            self._report_request(reply, stats, seconds)
            if self._tracing is not None:
                self._tracing.trace(self._record, reply.status, stats, given)

    def _report_request(self, reply: Response, stats: RequestStats, seconds: float) -> None:
        self._report(REQUESTS, 1, str(reply.status), stats.encoding, stats.error)
        self._report(REQUEST_SECONDS, seconds)
        for stage, stage_seconds in stats.timings.seconds.items():
            self._report(STAGE_SECONDS, stage_seconds, stage)
        self._report(RESPONSE_BYTES, len(reply.body))
        self._report(IMAGE_BYTES, stats.image_bytes)
        if stats.pixels:
            self._report(IMAGE_MEGAPIXELS, stats.pixels / 1e6)
        if stats.quality is not None:
            self._report_quality(stats.quality)

    def _report_quality(self, quality: Quality) -> None:
        self._report(CONFIDENCE, quality.confidence)
        self._report(ENTROPY, quality.entropy)
        for label, share in zip(self._record.labels, quality.shares, strict=True):
            if share:
                self._report(CLASS_COVERAGE, share, label)
        if quality.is_background_only:
            self._report(BACKGROUND_ONLY, 1)

    def _report_memory(self) -> None:
        self._report(MEMORY_BYTES, self._process.memory_info().rss)
        if self._device.startswith("cuda"):
            import torch

            index = self._device.partition(":")[2] or "0"
            self._report(GPU_MEMORY_BYTES, torch.cuda.memory_reserved(int(index)), index)

    def _report(self, metric: Metric, value: float, *labels: str) -> None:
        sink = self._sinks.get(metric.name)
        if sink is not None and math.isfinite(value):
            sink.add_or_update(value, [*self._model, *map(_label, labels)])


def _sinks(server: MetricsCache | None) -> dict[str, Sink]:
    """By name, the server's metrics that are declared here with the same labels."""
    kinds = () if server is None else server.cache.values()
    named = [item for of_a_kind in kinds for item in of_a_kind.items()]
    return {name: sink for name, sink in named if tuple(sink.dimension_names) == _LABELS.get(name)}


def _label(text: str) -> str:
    return text.translate(_NOT_IN_A_LABEL) or "none"
