"""The part that the engines `local` and `ray` share: HTTP requests for a pool of workers, and
metrics with TorchServe's names, so that dashboards work with every engine.
"""

import json
import platform
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
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
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field, File, create_form_parser

from ..runtime.errors import BadRequestError, SegserveError
from ..runtime.metrics import BUCKETS, ENGINE, OWN, Kind, Metric
from . import (
    EngineRequest,
    EngineResponse,
    FrontendError,
    Headers,
    frontend_json,
    unknown_method,
    unknown_model,
    unknown_path,
    unknown_version,
)
from .config import duplicate_part, is_form
from .store import ServedArchive
from .worker import DESCRIBE, Handled, Observation, Received

disable_created_metrics()  # type: ignore[no-untyped-call]

_ANY_VERSION = "default"  # TorchServe's label for a request without a version
_HUNDREDS = (2, 4, 5)
_NOT_PASSED_ON = {"describe", "explain"}  # TorchServe itself sets them


def as_row(body: bytes, content_type: str) -> dict[str, bytes]:
    """The parts of a form by their names; any other body under the name `body`.

    Raises BadRequestError: the form cannot be parsed, or two parts have the same name.
    """
    if not is_form(content_type):
        return {"body": body}
    parts: list[tuple[str, bytes]] = []

    def on_field(field: Field) -> None:
        parts.append((_text(field.field_name), field.value or b""))

    def on_file(file: File) -> None:
        file.file_object.seek(0)
        parts.append((_text(file.field_name), file.file_object.read()))

    try:
        in_memory = {"MAX_MEMORY_FILE_SIZE": len(body) + 1}
        parser = create_form_parser(
            {"Content-Type": content_type.encode("latin-1")}, on_field, on_file, in_memory
        )
        parser.write(body)
        parser.finalize()
    except (FormParserError, ValueError) as error:
        raise BadRequestError(
            f"the form cannot be read ({error}); expected multipart/form-data with a part 'data'"
        ) from error
    row = dict(parts)
    if len(row) < len(parts):
        raise duplicate_part()
    return row


def as_headers(raw: Headers) -> dict[str, str]:
    """Headers by their lower-case names. Repeated values are joined by commas (RFC 9110, 5.3)."""
    headers: dict[str, str] = {}
    for name_bytes, value_bytes in raw:
        name, value = name_bytes.decode("latin-1").lower(), value_bytes.decode("latin-1")
        if name not in _NOT_PASSED_ON:
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def _text(name: bytes | None) -> str:
    return (name or b"").decode("utf-8", errors="replace")


_JSON_HEADERS: Headers = [(b"content-type", b"application/json")]
_CACHE_HEADERS: Headers = [  # TorchServe's
    (b"pragma", b"no-cache"),
    (b"cache-control", b"no-cache; no-store, must-revalidate, private"),
    (b"expires", b"Thu, 01 Jan 1970 00:00:00 UTC"),
]

WORKER_GONE = "the process that had this request is gone; send it again"


def queue_full(size: int) -> str:
    return f"{size} requests wait already; send fewer at once, or again later"


class PoolEngine(ABC):
    """Forwards requests to a pool of workers. See `Engine` for the methods."""

    def __init__(self, served: Sequence[ServedArchive]) -> None:
        self._served = {archive.name: archive for archive in served}
        self._metrics = ServerMetrics()
        self.models = tuple(self._served)

    @abstractmethod
    async def submit(self, model: str, received: Received) -> Handled:
        """Raises OverloadedError: the queue is full; UnavailableError: the worker is gone."""

    @abstractmethod
    async def worker_states(self, model: str) -> Sequence[str]:
        """The status of every worker, in TorchServe's terms."""

    async def not_ready_reason(self) -> str | None:
        for model in self.models:
            states = await self.worker_states(model)
            if "READY" not in states:
                return f"the model {model!r}: its workers are {', '.join(states) or 'missing'}"
        return None

    async def predict(self, request: EngineRequest) -> EngineResponse:
        status = 500
        try:
            response = await self._predict(request)
            status = response.status
        except (SegserveError, FrontendError) as error:
            status = error.status
            raise
        finally:
            self._metrics.count_response(status)
        return response

    async def describe(self, request: EngineRequest) -> EngineResponse:
        """The read-only part of TorchServe's management API. Nothing can be changed over HTTP."""
        if request.method not in ("GET", "HEAD"):
            raise unknown_method()
        match _path(request):
            case ["models"]:
                models = self._served.values()
                listed = [{"modelName": each.name, "modelUrl": each.path.name} for each in models]
                return _json({"models": listed})
            case ["models", name]:
                served = self._find(name, None)
            case ["models", name, version]:
                served = self._find(name, version)
            case _:
                raise unknown_path()
        query = request.target.decode("latin-1").partition("?")[2].lower()
        is_customized = "customized=true" in query.split("&")
        metadata = (await self._submit(served.name, DESCRIBE)).body if is_customized else None
        states = await self.worker_states(served.name)
        return _json([_description(served, states, metadata)])

    async def manage(self, request: EngineRequest) -> EngineResponse:
        return await self.describe(request)

    async def metrics(self) -> bytes:
        return self._metrics.as_text()

    async def _predict(self, request: EngineRequest) -> EngineResponse:
        began_s = time.perf_counter()
        body = b"".join([chunk async for chunk in request.body])
        match _path(request):
            case ["predictions", name]:
                version = None
            case ["predictions", name, version]:
                pass
            case _:
                raise unknown_path()
        self._find(name, version)
        headers = as_headers(request.headers)
        row = as_row(body, headers.get("content-type", ""))
        handled = await self._submit(name, Received(row, headers))
        seconds = time.perf_counter() - began_s
        self._metrics.count_prediction(name, version, seconds, handled.seconds)
        own = [
            (key.lower().encode(), text.encode("latin-1")) for key, text in handled.headers.items()
        ]
        return EngineResponse(handled.status, [*own, *_CACHE_HEADERS], handled.body)

    async def _submit(self, name: str, received: Received) -> Handled:
        handled = await self.submit(name, received)
        self._metrics.count_observations(handled.observations)
        return handled

    def _find(self, name: str, version: str | None) -> ServedArchive:
        served = self._served.get(name)
        if served is None:
            raise unknown_model(name)
        if version not in (None, served.version):
            raise unknown_version(name, str(version))
        return served


def _description(
    model: ServedArchive, workers: Sequence[str], customized: bytes | None
) -> dict[str, Any]:
    document: dict[str, Any] = {
        "modelName": model.name,
        "modelVersion": model.version,
        "modelUrl": model.path.name,
        "runtime": "python",
        **model.config.model_dump(exclude={"handler"}, exclude_none=True),
        "workers": [{"id": str(number), "status": status} for number, status in enumerate(workers)],
    }
    if customized is not None:
        document["customizedMetadata"] = json.loads(customized)
    return document


def _path(request: EngineRequest) -> list[str]:
    return request.target.decode("latin-1").partition("?")[0].strip("/").split("/")


def _json(document: object) -> EngineResponse:
    return EngineResponse(200, [*_JSON_HEADERS, *_CACHE_HEADERS], frontend_json(document))


class _Total(Gauge):
    """A total. The name of prometheus_client's own counters must end in `_total`."""

    _type = "unknown"


class ServerMetrics:
    """The metrics of one engine. Those of its host are measured when metrics are requested."""

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
        self, model: str, version: str | None, seconds: float, handler_seconds: float
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

    def as_text(self) -> bytes:
        for name, value in _host_figures().items():
            self._add(name, value, "Host")
        return generate_latest(self._registry)


def _collector(metric: Metric, registry: CollectorRegistry) -> Counter | Gauge | Histogram:
    arguments = collector_arguments(metric, registry)
    if metric.kind is Kind.HISTOGRAM:
        return Histogram(**arguments, buckets=BUCKETS)
    if metric.kind is Kind.GAUGE:
        return Gauge(**arguments)
    return Counter(**arguments) if metric.name.endswith("_total") else _Total(**arguments)


def collector_arguments(metric: Metric, registry: CollectorRegistry) -> dict[str, Any]:
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
