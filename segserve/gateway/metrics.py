"""Prometheus metrics: the gateway's own, and those of engines without TorchServe, with its names,
so that dashboards work with every engine.
"""

import platform
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

from ..engines.worker import Observation
from ..runtime.metrics import BUCKETS, ENGINE, OWN, Kind, Metric

disable_created_metrics()  # type: ignore[no-untyped-call]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
WAIT_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)

REQUESTS = Metric(
    "segserve_gateway_requests_total",
    Kind.COUNTER,
    "Count",
    "Requests for predictions by HTTP status, rejected ones included; 499 if the client left.",
    ("status",),
)
WAIT_SECONDS = Metric(
    "segserve_gateway_wait_seconds",
    Kind.HISTOGRAM,
    "Seconds",
    "How long a request waited for its slot.",
    (),
)
WAITING = Metric(
    "segserve_gateway_waiting",
    Kind.GAUGE,
    "Count",
    "Requests that wait for a slot of their client.",
    (),
)
READY = Metric(
    "segserve_gateway_ready",
    Kind.GAUGE,
    "Count",
    "1 if `/ping` reports ready workers, else 0.",
    (),
)

_INITIAL_STATUSES = (200, 400, 408, 413, 500, 503, 507)
"""They start at 0, so that rates include the first response."""

_ANY_VERSION = "default"  # TorchServe's label for a request without a version
_HUNDREDS = (2, 4, 5)


class GatewayMetrics:
    """The metrics of one gateway. `ready` is called when they are requested."""

    def __init__(self, ready: Callable[[], bool]) -> None:
        self._registry = registry = CollectorRegistry()
        self._host = host = platform.node()
        self._requests = Counter(**described(REQUESTS, registry))
        for status in _INITIAL_STATUSES:
            self._requests.labels(status, host)
        wait = Histogram(**described(WAIT_SECONDS, registry), buckets=WAIT_BUCKETS_S)
        self._wait = wait.labels(host)
        self._waiting = Gauge(**described(WAITING, registry)).labels(host)
        Gauge(**described(READY, registry)).labels(host).set_function(ready)

    def count_response(self, status: int) -> None:
        """Counts the response to a request for a prediction."""
        self._requests.labels(status, self._host).inc()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Measures the wait for a slot. A request that finds the queue full has not waited."""
        began_s = time.perf_counter()
        with self._waiting.track_inprogress():
            yield
        self._wait.observe(time.perf_counter() - began_s)

    def as_text(self) -> bytes:
        return generate_latest(self._registry)


class _Total(Gauge):
    """A total. The name of prometheus_client's own counters must end in `_total`."""

    _type = "unknown"


class ServerMetrics:
    """The metrics of one gateway. Those of its host are measured when metrics are requested."""

    def __init__(self) -> None:
        self._hostname = platform.node()
        self._registry = registry = CollectorRegistry()
        self._collectors = {metric.name: _collector(metric, registry) for metric in (*OWN, *ENGINE)}
        psutil.cpu_percent()  # the first call only starts the measurement
        for hundred in _HUNDREDS:  # starts at 0, so that rates include the first response
            self._add(f"Requests{hundred}XX", 0, "Host")

    def count_response(self, status: int) -> None:
        if status // 100 in _HUNDREDS:
            self._add(f"Requests{status // 100}XX", 1, "Host")

    def count_prediction(
        self, model: str, version: str | None, *, seconds: float, handler_seconds: float
    ) -> None:
        """Counts a completed request: its total time, and its time in the handler."""
        labels = model, version or _ANY_VERSION
        queue_s = max(0.0, seconds - handler_seconds)
        self._add("ts_inference_requests_total", 1, *labels)
        self._add("ts_inference_latency_microseconds", 1e6 * seconds, *labels)
        self._add("ts_queue_latency_microseconds", 1e6 * queue_s, *labels)
        self._add("QueueTime", 1e3 * queue_s, "Host")
        self._add("PredictionTime", 1e3 * handler_seconds, model, "Model")

    def count_observations(self, observations: Iterable[Observation]) -> None:
        for name, value, labels in observations:
            self._add(name, value, *labels)

    def _add(self, name: str, value: float, *labels: str) -> None:
        collector = self._collectors[name].labels(*labels, self._hostname)
        if isinstance(collector, Histogram):
            collector.observe(value)
        elif isinstance(collector, Counter | _Total):
            collector.inc(value)
        else:
            collector.set(value)

    def exposed(self) -> bytes:
        for name, value in _host_figures().items():
            self._add(name, value, "Host")
        return generate_latest(self._registry)


def _collector(metric: Metric, registry: CollectorRegistry) -> Counter | Gauge | Histogram:
    arguments = described(metric, registry)
    if metric.kind is Kind.HISTOGRAM:
        return Histogram(**arguments, buckets=BUCKETS)
    if metric.kind is Kind.GAUGE:
        return Gauge(**arguments)
    return Counter(**arguments) if metric.name.endswith("_total") else _Total(**arguments)


def described(metric: Metric, registry: CollectorRegistry) -> dict[str, Any]:
    """The arguments of a collector of the metric."""
    return {
        "name": metric.name,
        "documentation": metric.description,
        "labelnames": (*metric.labels, metric.host_label),
        "registry": registry,
    }


def _host_figures() -> dict[str, float]:
    """Processor, memory and disk of this machine."""
    memory, disk = psutil.virtual_memory(), psutil.disk_usage("/")
    return {
        "CPUUtilization": psutil.cpu_percent(),
        "MemoryUsed": memory.used / 2**20,
        "MemoryAvailable": memory.available / 2**20,
        "MemoryUtilization": memory.percent,
        "DiskUsage": disk.used / 2**30,
        "DiskAvailable": disk.free / 2**30,
        "DiskUtilization": disk.percent,
    }
