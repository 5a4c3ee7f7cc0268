"""The messages between the HTTP application and the workers of a model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


class Observation(NamedTuple):
    """One value of a metric, with the values of its labels in the declared order."""

    name: str
    value: float
    labels: tuple[str, ...]


@dataclass(frozen=True)
class CollectedMetric:
    """A metric like `ts.metrics.caching_metric.CachingMetric`. A handler reports values to it."""

    name: str
    dimension_names: Sequence[str]
    observations: list[Observation]

    def add_or_update(self, value: float, dimension_values: Sequence[str]) -> None:
        self.observations.append(Observation(self.name, value, tuple(dimension_values)))


class CollectedMetrics:
    """The metrics of one replica.

    Args:
        declared: by the name of each metric that the gateway knows, the names of its labels.
    """

    def __init__(self, declared: Mapping[str, Sequence[str]]) -> None:
        self._observations: list[Observation] = []
        sinks = {
            name: CollectedMetric(name, labels, self._observations)
            for name, labels in declared.items()
        }
        self.cache: Mapping[object, Mapping[str, CollectedMetric]] = {"declared": sinks}

    def drain(self) -> tuple[Observation, ...]:
        """The values that were reported since the last call."""
        taken = tuple(self._observations)
        self._observations.clear()
        return taken


@dataclass(frozen=True)
class HandlerProcess:
    """What a handler may know about its process."""

    model_name: str
    model_dir: str
    manifest: Mapping[str, object]
    model_yaml_config: Mapping[str, object]
    batch_size: int
    gpu_id: int | None
    metrics: CollectedMetrics = field(default_factory=lambda: CollectedMetrics({}))


class HandlerContext:
    """The headers of a batch's requests, and the statuses and headers of its responses.

    There are none while the handler is initialised.
    """

    def __init__(
        self, worker: HandlerProcess, request_headers: Sequence[Mapping[str, str]] = ()
    ) -> None:
        self.model_name = worker.model_name
        self.manifest = worker.manifest
        self.model_yaml_config = worker.model_yaml_config
        self.metrics = worker.metrics
        self.system_properties = {
            "model_dir": worker.model_dir,
            "gpu_id": worker.gpu_id,
            "batch_size": worker.batch_size,
        }
        self._request_headers = [dict(headers) for headers in request_headers]
        self._statuses: list[tuple[int, str | None]] = [(200, None) for _ in request_headers]
        self._response_headers: list[dict[str, str]] = [{} for _ in request_headers]

    def get_request_header(self, idx: int, key: str) -> str | None:
        return self._request_headers[idx].get(key)

    def get_all_request_header(self, idx: int) -> dict[str, str]:
        return self._request_headers[idx]

    def set_response_status(self, code: int = 200, phrase: str = "", idx: int = 0) -> None:
        self._statuses[idx] = (code, phrase)

    def get_response_status(self, idx: int) -> tuple[int, str | None]:
        return self._statuses[idx]

    def set_response_content_type(self, idx: int, value: str) -> None:
        self.set_response_header(idx, "content-type", value)

    def get_response_content_type(self, idx: int) -> str | None:
        return self._response_headers[idx].get("content-type")

    def set_response_header(self, idx: int, key: str, value: str) -> None:
        self._response_headers[idx][key] = value

    def get_response_headers(self, idx: int) -> dict[str, str]:
        return self._response_headers[idx]


@dataclass(frozen=True)
class Received:
    """A request as TorchServe passes it to a handler: `{"body": content}` or `{part: content}`."""

    row: Mapping[str, bytes]
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Handled:
    """A response, the seconds of its batch, and the metrics reported since the last response."""

    status: int
    body: bytes
    headers: Mapping[str, str]
    seconds: float
    observations: tuple[Observation, ...] = ()


DESCRIBE = Received({}, {"describe": "True"})
"""A describe request, as TorchServe passes it to a handler."""
