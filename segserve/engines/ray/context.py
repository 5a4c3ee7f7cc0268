"""Replaces TorchServe's `Context` for a handler. It has the same names, for one worker or one
batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .collected import CollectedMetrics


@dataclass(frozen=True)
class Worker:
    """What a handler may know about its process.

    `model_yaml_config` is the content of the archive's model-config.yaml, with the overrides
    applied.
    """

    model_name: str
    model_dir: str
    manifest: Mapping[str, object]
    model_yaml_config: Mapping[str, object]
    batch_size: int
    gpu_id: int | None
    metrics: CollectedMetrics = field(default_factory=lambda: CollectedMetrics({}))


class Context:
    """The headers of requests, and the statuses and headers of responses.

    Args:
        worker: the process of the handler.
        request_headers: those of every request of the batch; empty while the handler is
            initialised.
    """

    def __init__(self, worker: Worker, request_headers: Sequence[Mapping[str, str]] = ()) -> None:
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
