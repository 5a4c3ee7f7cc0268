"""Declares every metric of a server: name, description, unit and labels. No other place declares
them.

The handler reports the metrics in `OWN`, in the same way on every engine. The engine counts the
metrics in `ENGINE`: TorchServe itself, or the gateway of Ray Serve. TorchServe's metrics file and
the gateway's collectors derive from this module. Tests check docs/metrics.md, the dashboard and the
alert rules against it.
"""

from dataclasses import dataclass
from enum import StrEnum
from functools import partial


class Kind(StrEnum):
    """The Prometheus type of a metric, named as in TorchServe's metrics file."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True)
class Metric:
    """The declaration of a metric.

    Attributes:
        labels: names, in the order in which their values are reported.
        host_label: the name of one more label, which the engine adds: the host's name.
    """

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


def _of_model(kind: Kind, name: str, unit: str, description: str, *labels: str) -> Metric:
    return Metric(name, kind, unit, description, (*_MODEL, *labels))


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

OWN = (
    WORKER_STARTS,
    REQUESTS,
    REQUEST_SECONDS,
    STAGE_SECONDS,
    BATCH_SIZE,
    IMAGE_MEGAPIXELS,
    IMAGE_BYTES,
    RESPONSE_BYTES,
    MEMORY_BYTES,
    GPU_MEMORY_BYTES,
    CLASS_COVERAGE,
    CONFIDENCE,
    ENTROPY,
    BACKGROUND_ONLY,
)


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
    _of_host(
        "Requests2XX", Kind.COUNTER, "Count", "Responses with a status of 200 to 299, of any path."
    ),
    _of_host(
        "Requests4XX", Kind.COUNTER, "Count", "Responses with a status of 400 to 499, of any path."
    ),
    _of_host(
        "Requests5XX", Kind.COUNTER, "Count", "Responses with a status of 500 to 599, of any path."
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
