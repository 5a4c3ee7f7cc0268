"""Prometheus metrics by the names that TorchServe's have, so that dashboards and alerts fit both."""

import platform
from collections.abc import Iterable

import psutil
from prometheus_client import CollectorRegistry, Counter, Gauge, disable_created_metrics, generate_latest
from prometheus_client.metrics_core import Metric

disable_created_metrics()  # type: ignore[no-untyped-call]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_MODEL = ("model_name", "model_version", "hostname")
_HOST = ("Level", "Hostname")
_ANY_VERSION = "default"  # TorchServe's word for a request that names none


class _Total(Gauge):
    """A total whose name must not end in `_total`, as prometheus_client would have it of a counter."""

    _type = "unknown"


class Metrics:
    """What one door has seen. Its host's figures are taken when they are asked for."""

    def __init__(self) -> None:
        self._hostname = platform.node()
        self._registry = registry = CollectorRegistry()
        self._requests = Counter("ts_inference_requests_total", "Requests.", _MODEL, registry=registry)
        self._latency_us = _Total(
            "ts_inference_latency_microseconds", "From request to answer, total.", _MODEL, registry=registry
        )
        self._queue_us = _Total("ts_queue_latency_microseconds", "On the way, total.", _MODEL, registry=registry)
        self._statuses = {
            hundred: _Total(f"Requests{hundred}XX", "Answers by status.", _HOST, registry=registry)
            for hundred in (2, 4, 5)
        }
        for metric in self._statuses.values():  # at 0 from the start, for rates
            metric.labels("Host", self._hostname)
        self._queue_ms = Gauge("QueueTime", "The last request's, in ms.", _HOST, registry=registry)
        self._prediction_ms = Gauge(
            "PredictionTime", "The last batch's, in ms.", ("ModelName", "Level", "Hostname"), registry=registry
        )
        registry.register(_Host(self._hostname))

    def count_answer(self, status: int) -> None:
        """Any answer at all."""
        if metric := self._statuses.get(status // 100):
            metric.labels("Host", self._hostname).inc()

    def count_prediction(self, model: str, version: str | None, *, seconds: float, handler_seconds: float) -> None:
        """A request that a handler has answered: how long it took in all, and how long the handler had it."""
        labels = model, version or _ANY_VERSION, self._hostname
        queue_s = max(0.0, seconds - handler_seconds)
        self._requests.labels(*labels).inc()
        self._latency_us.labels(*labels).inc(1e6 * seconds)
        self._queue_us.labels(*labels).inc(1e6 * queue_s)
        self._queue_ms.labels("Host", self._hostname).set(1e3 * queue_s)
        self._prediction_ms.labels(model, "Model", self._hostname).set(1e3 * handler_seconds)

    def exposed(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self._registry)


class _Host:
    """Processor, memory and disk of this machine."""

    def __init__(self, hostname: str) -> None:
        self._labels = {"Level": "Host", "Hostname": hostname}
        psutil.cpu_percent()  # the first call only starts the measurement

    def collect(self) -> Iterable[Metric]:
        memory, disk = psutil.virtual_memory(), psutil.disk_usage("/")
        figures = {
            "CPUUtilization": psutil.cpu_percent(),
            "MemoryUsed": memory.used / 2**20,
            "MemoryAvailable": memory.available / 2**20,
            "MemoryUtilization": memory.percent,
            "DiskUsage": disk.used / 2**30,
            "DiskAvailable": disk.free / 2**30,
            "DiskUtilization": disk.percent,
        }
        for name, value in figures.items():
            metric = Metric(name, f"{name} of the machine.", "gauge")
            metric.add_sample(name, self._labels, value)
            yield metric
