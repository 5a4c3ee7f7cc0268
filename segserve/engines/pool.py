"""The part that the engines `local` and `ray` share: HTTP requests for a pool of workers."""

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field, File, create_form_parser
from starlette.datastructures import Headers as HeaderMapping

from ..gateway.metrics import ServerMetrics
from ..runtime.errors import BadRequestError, SegserveError
from . import EngineRequest, EngineResponse, Headers
from .errors import (
    FrontendError,
    frontend_json,
    unknown_method,
    unknown_model,
    unknown_path,
    unknown_version,
)
from .store import ServedArchive
from .worker import DESCRIBE, Handled, Received

_NOT_PASSED_ON = {"describe", "explain"}  # TorchServe itself sets them


def as_row(body: bytes, content_type: str) -> dict[str, bytes]:
    """The parts of a form by their names; any other body under the name `body`.

    Raises BadRequestError: the form cannot be parsed.
    """
    if content_type.partition(";")[0].strip().lower() != "multipart/form-data":
        return {"body": body}
    row: dict[str, bytes] = {}

    def on_field(field: Field) -> None:
        row[_text(field.field_name)] = field.value or b""

    def on_file(file: File) -> None:
        file.file_object.seek(0)
        row[_text(file.field_name)] = file.file_object.read()

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
    """The message for a request for which the queue has no space."""
    return f"{size} requests wait already; send fewer at once, or again later"


class PoolEngine(ABC):
    """Forwards requests to a pool of workers. See `Engine` for the methods."""

    def __init__(self, served: Sequence[ServedArchive]) -> None:
        self._served = {archive.name: archive for archive in served}
        self._metrics = ServerMetrics()
        self.models = tuple(self._served)

    @abstractmethod
    async def submit(self, model: str, received: Received) -> Handled:
        """Passes a request to a worker and returns its response.

        Raises:
            OverloadedError: the queue of the model is full.
            UnavailableError: the worker that had this request is gone.
        """

    @abstractmethod
    async def worker_states(self, model: str) -> Sequence[str]:
        """The status of every worker, in TorchServe's terms."""

    async def obstacle(self) -> str | None:
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
        return self._metrics.exposed()

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
        headers = HeaderMapping(raw=list(request.headers))
        row = as_row(body, headers.get("content-type", ""))
        handled = await self._submit(name, Received(row, as_headers(request.headers)))
        seconds = time.perf_counter() - began_s
        self._metrics.count_prediction(
            name, version, seconds=seconds, handler_seconds=handled.seconds
        )
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
    """`GET /models/{model}`, with the handler's own description if `customized` is given."""
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
