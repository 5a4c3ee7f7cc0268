"""The gateway's own Prometheus metrics."""

import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ..engines.pool import collector_arguments
from ..runtime.metrics import Kind, Metric

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


class GatewayMetrics:
    """The metrics of one gateway. `ready` is called when they are requested."""

    def __init__(self, ready: Callable[[], bool]) -> None:
        self._registry = registry = CollectorRegistry()
        self._host = host = platform.node()
        self._requests = Counter(**collector_arguments(REQUESTS, registry))
        for status in _INITIAL_STATUSES:
            self._requests.labels(status, host)
        wait = Histogram(**collector_arguments(WAIT_SECONDS, registry), buckets=WAIT_BUCKETS_S)
        self._wait = wait.labels(host)
        self._waiting = Gauge(**collector_arguments(WAITING, registry)).labels(host)
        Gauge(**collector_arguments(READY, registry)).labels(host).set_function(ready)

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
