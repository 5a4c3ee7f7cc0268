"""Runs an archive's handler without TorchServe, in a process that does nothing else.

The archive has its own copy of `segserve.runtime`, and its handler must import that copy. So
nothing here imports the installed one. The gateway exchanges `Received` and `Handled` with it.
"""

import importlib
import inspect
import json
import logging
import signal
import sys
import time
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import yaml

import segserve

from ..resources import count_gpus
from ..signing import TrustedKeys
from .json_log import log_to

logger = logging.getLogger(__name__)

MANIFEST = "MAR-INF/MANIFEST.json"
CONFIG_FILE = "model-config.yaml"


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
    """The metrics of one replica. `declared` has, by a metric's name, the names of its labels."""

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

    def get_all_request_header(self, idx: int) -> dict[str, str]:
        return self._request_headers[idx]

    def set_response_status(self, code: int = 200, phrase: str = "", idx: int = 0) -> None:
        self._statuses[idx] = (code, phrase)

    def get_response_status(self, idx: int) -> tuple[int, str | None]:
        return self._statuses[idx]

    def set_response_content_type(self, idx: int, value: str) -> None:
        self.set_response_header(idx, "content-type", value)

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


def load_handler(
    archive: Path,
    folder: Path,
    *,
    overrides: Mapping[str, Any],
    gpu_id: int | None,
    metrics: Mapping[str, Sequence[str]] | None = None,
    trusted: TrustedKeys | None = None,
) -> "BatchHandler":
    """Unpacks an archive into an empty folder and loads its handler class. The folder must be kept.

    Args:
        overrides: keys that replace those of model-config.yaml in the archive; `handler` is merged
            key by key.
        metrics: see `CollectedMetrics`.

    Raises:
        RuntimeError: the handler rejects its archive, or there is not exactly one handler class.
        SignatureError: the archive is not signed by a trusted key; nothing of it was unpacked.
    """
    _unpack(archive, folder, trusted)
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    config = _overridden(
        yaml.safe_load((folder / CONFIG_FILE).read_text(encoding="utf-8")) or {}, overrides
    )
    worker = HandlerProcess(
        model_name=manifest["model"]["modelName"],
        model_dir=str(folder),
        manifest=manifest,
        model_yaml_config=config,
        batch_size=config.get("batchSize", 1),
        gpu_id=gpu_id,
        metrics=CollectedMetrics(metrics or {}),
    )
    handler = _handler_class(_imported(folder, manifest["model"]["handler"]))()
    handler.initialize(HandlerContext(worker))
    return BatchHandler(handler, worker)


def _unpack(archive: Path, folder: Path, trusted: TrustedKeys | None) -> None:
    with (
        trusted.verified(archive) if trusted else nullcontext(archive) as verified,
        zipfile.ZipFile(verified) as packed,
    ):
        packed.extractall(folder)


def _overridden(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    handler = {**config.get("handler", {}), **overrides.get("handler", {})}
    return {**config, **overrides, "handler": handler}


def _imported(folder: Path, file_name: str) -> ModuleType:
    """Imports the handler's module. The module and its imports come from the folder."""
    if {"segserve.runtime", "segserve.schema"} & sys.modules.keys():
        raise RuntimeError(
            "segserve.runtime is imported already: an archive's own copy needs a process of its own"
        )
    sys.path.insert(0, str(folder))
    segserve.__path__.insert(0, str(folder / "segserve"))
    importlib.invalidate_caches()
    return importlib.import_module(Path(file_name).stem)


def _handler_class(module: ModuleType) -> Any:  # noqa: ANN401 - from the archive
    """The only class that is defined in the module. TorchServe has the same rule."""
    classes = [
        member
        for _, member in inspect.getmembers(module, inspect.isclass)
        if member.__module__ == module.__name__
    ]
    if len(classes) != 1:
        raise RuntimeError(
            f"{module.__name__}.py: expected one class, the handler, got {len(classes)}"
        )
    return classes[0]


class BatchHandler:
    def __init__(self, handler: Any, process: HandlerProcess) -> None:  # noqa: ANN401
        self._handler, self.process = handler, process

    def handle(self, requests: Sequence[Received]) -> list[Handled]:
        """Returns one response per request, in the same order."""
        context = HandlerContext(self.process, [request.headers for request in requests])
        began_s = time.monotonic()
        bodies = self._handler.handle([request.row for request in requests], context)
        seconds = time.monotonic() - began_s
        observations = self.process.metrics.drain()
        return [
            Handled(
                context.get_response_status(index)[0],
                _as_bytes(body),
                context.get_response_headers(index),
                seconds,
                () if index else observations,
            )
            for index, body in enumerate(bodies)
        ]


def _as_bytes(body: object) -> bytes:
    """What a handler returns, as TorchServe sends it: text as UTF-8, other objects as JSON."""
    if isinstance(body, bytes | bytearray | memoryview):
        return bytes(body)
    return (body if isinstance(body, str) else json.dumps(body)).encode()


BatchResult = list[Handled] | None  # None if the handler failed


def run_worker(
    connection: Connection,
    archive: Path,
    folder: Path,
    index: int,
    on_gpu: bool,
    metrics: Mapping[str, Sequence[str]],
) -> None:
    """Loads the archive and handles batches until the main process closes the connection.

    The first message is None if the handler is ready, else the reason why it is not. Workers are
    distributed over the GPUs in the order of `index`. For other arguments see `load_handler`.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process decides when workers end
    log_to(sys.stdout, logging.WARNING)
    try:
        gpus = count_gpus() if on_gpu else 0
        gpu_id = index % gpus if gpus else None
        handler = load_handler(archive, folder, overrides={}, gpu_id=gpu_id, metrics=metrics)
    except Exception as error:
        logger.exception("the archive cannot be loaded")
        connection.send(str(error) or type(error).__name__)
        return
    with suppress(EOFError, ConnectionError):  # the main process has ended
        connection.send(None)
        while True:
            connection.send(_handled(handler, connection))


def _handled(handler: BatchHandler, connection: Connection) -> BatchResult:
    requests = connection.recv()
    try:
        handled = handler.handle(requests)
    except Exception:
        logger.exception("the handler failed at a batch")
        return None
    if len(handled) != len(requests):
        logger.error("%d responses to %d requests", len(handled), len(requests))
        return None
    return handled
