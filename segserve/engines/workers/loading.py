"""Loads the handler of an archive, in a process that does nothing else.

The archive has its own copy of `segserve.runtime`, and its handler must import that copy. So
nothing here imports the installed one.
"""

import importlib
import inspect
import json
import sys
import time
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any, Protocol

import yaml

import segserve

from ...signing import TrustedKeys
from .messages import CollectedMetrics, Handled, HandlerContext, HandlerProcess, Received

MANIFEST = "MAR-INF/MANIFEST.json"
CONFIG_FILE = "model-config.yaml"


class LoadedHandler(Protocol):
    """The interface of TorchServe's handlers."""

    def initialize(self, context: HandlerContext) -> None: ...

    def handle(
        self, data: Sequence[Mapping[str, bytes]], context: HandlerContext
    ) -> list[bytes]: ...


def load_handler(
    archive: Path,
    folder: Path,
    *,
    overrides: Mapping[str, Any],
    gpu_id: int | None,
    metrics: Mapping[str, Sequence[str]] | None = None,
    trusted: TrustedKeys | None = None,
) -> tuple[LoadedHandler, HandlerProcess]:
    """Unpacks an archive into an empty folder and loads its handler class. The folder must be kept.

    Args:
        overrides: keys that replace those of model-config.yaml in the archive; `handler` is merged
            key by key.
        gpu_id: the GPU to compute on; None for the CPU.
        metrics: by the name of each metric that the handler may report, the names of its labels.
        trusted: the keys that the archive must be signed with.

    Raises:
        RuntimeError: the handler rejects its archive, or the archive does not have exactly one
            handler class.
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
    return handler, worker


def _unpack(archive: Path, folder: Path, trusted: TrustedKeys | None) -> None:
    with TemporaryDirectory(prefix="segserve-verified-") as folder_of_copy:
        if trusted is not None:
            verified = Path(folder_of_copy) / archive.name
            trusted.copy(archive, verified)
            archive = verified
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(folder)


def _overridden(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **config,
        **overrides,
        "handler": {**config.get("handler", {}), **overrides.get("handler", {})},
    }


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


def _handler_class(module: ModuleType) -> type[LoadedHandler]:
    """The only class that is defined in the module. TorchServe has the same rule."""
    classes: list[Any] = [
        member
        for _, member in inspect.getmembers(module, inspect.isclass)
        if member.__module__ == module.__name__
    ]
    if len(classes) != 1:
        raise RuntimeError(
            f"{module.__name__}.py: expected one class, the handler, got {len(classes)}"
        )
    handler: type[LoadedHandler] = classes[0]
    return handler


class BatchHandler:
    """Passes batches to what `load_handler` returns."""

    def __init__(self, handler: LoadedHandler, process: HandlerProcess) -> None:
        self._handler, self._process = handler, process

    def handle(self, requests: Sequence[Received]) -> list[Handled]:
        """Returns one response per request, in the same order."""
        context = HandlerContext(self._process, [request.headers for request in requests])
        began_s = time.monotonic()
        bodies = self._handler.handle([request.row for request in requests], context)
        seconds = time.monotonic() - began_s
        observations = self._process.metrics.drain()
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
