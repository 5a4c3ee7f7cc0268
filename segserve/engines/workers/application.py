"""The HTTP application over a pool of workers: paths, tokens, limits, error bodies."""

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ...runtime.errors import InternalError, SegserveError, UnavailableError
from .archives import ServedModel, describe, listed
from .messages import DESCRIBE, Handled, Received
from .metrics import CONTENT_TYPE, ServerMetrics
from .request import as_headers, as_row, read_body, read_to_its_end
from .tokens import KeyFile, TokenKind
from .torchserve_http import (
    RefusalError,
    as_json,
    unknown_method,
    unknown_model,
    unknown_path,
    unknown_version,
)

logger = logging.getLogger(__name__)

JSON = "application/json"
_RETRY_AFTER_S = 1
_HEADERS = {  # TorchServe's, and one that stops browsers from guessing the media type
    "pragma": "no-cache",
    "cache-control": "no-cache; no-store, must-revalidate, private",
    "expires": "Thu, 01 Jan 1970 00:00:00 UTC",
    "x-content-type-options": "nosniff",
}


WORKER_GONE = "the process that had this request is gone; send it again"


def queue_full(size: int) -> str:
    """The message of an error response to a request for which the queue has no space."""
    return f"{size} requests wait already; send fewer at once, or again later"


class WorkerPool(Protocol):
    """The workers of all models."""

    async def submit(self, model: str, received: Received) -> Handled:
        """Passes a request to a worker and returns its response.

        Raises:
            OverloadedError: the queue of the model is full.
            UnavailableError: the worker that had this request is gone.
        """

    async def worker_states(self, model: str) -> Sequence[str]:
        """The status of every worker, in TorchServe's terms."""


class HandlerApplication:
    """An ASGI application. It serves every path of the contract, and the read-only paths of
    TorchServe's management API.

    Args:
        pool: the workers.
        served: the models, by name.
        key_file: the file of the tokens; None if requests need none.
        token_minutes: the lifetime of new tokens.
        max_request_bytes: a larger request is rejected.
    """

    def __init__(
        self,
        pool: WorkerPool,
        served: Mapping[str, ServedModel],
        *,
        key_file: str | None,
        token_minutes: int,
        max_request_bytes: int,
    ) -> None:
        self._pool = pool
        self._served = served
        self._tokens = KeyFile(Path(key_file), minutes=token_minutes) if key_file else None
        self._max_request_bytes = max_request_bytes
        self._metrics = ServerMetrics()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            response = await self.respond(Request(scope, receive))
            await response(scope, receive, send)

    async def respond(self, request: Request) -> Response:
        """Handles one request."""
        try:
            response = await self._route(request)
        except RefusalError as error:
            response = Response(error.body, error.status, media_type=JSON)
        except SegserveError as error:
            response = _error_response(error)
        except Exception:
            logger.exception("a request failed")
            response = _error_response(
                InternalError("the server failed at this request; its log says why")
            )
        self._metrics.count_response(response.status_code)
        response.headers.update(_HEADERS)
        return response

    async def _route(self, request: Request) -> Response:
        parts = request.scope["path"].strip("/").split("/")
        match [request.method, *parts]:
            case [_, "metrics"]:
                return Response(self._metrics.exposed(), headers={"content-type": CONTENT_TYPE})
            case [_, "ping"]:
                self._check(request, "inference")
                return _json({"status": "Healthy"})
            case [_, "predictions", name]:
                return await self._predict(request, name, None)
            case [_, "predictions", name, version]:
                return await self._predict(request, name, version)
            case ["GET", "token"] if self._tokens:
                self._tokens.renew(
                    request.headers.get("authorization"), request.query_params.get("type", "")
                )
                return Response(b"\n", media_type=JSON)
            case [_, "models", *rest]:
                return await self._manage(request, rest)
            case _:
                self._check(request, "inference")
                raise unknown_path()

    def _check(self, request: Request, kind: TokenKind) -> None:
        if self._tokens:
            self._tokens.check(request.headers.get("authorization"), kind)

    def _find(self, name: str, version: str | None) -> ServedModel:
        served = self._served.get(name)
        if served is None:
            raise unknown_model(name)
        if version not in (None, served.version):
            raise unknown_version(name, str(version))
        return served

    async def _predict(self, request: Request, name: str, version: str | None) -> Response:
        began_s = time.perf_counter()
        # The body is read before the request is rejected: a client that is still sending may not
        # read the response.
        try:
            self._check(request, "inference")
        except RefusalError:
            await read_to_its_end(request.stream())
            raise
        body = await read_body(request.stream(), max_bytes=self._max_request_bytes)
        self._find(name, version)
        row = as_row(body, request.headers.get("content-type", ""))
        handled = await self._handle(
            name, Received(row, as_headers(request.headers.raw, request.url.query))
        )
        self._metrics.count_prediction(
            name, version, seconds=time.perf_counter() - began_s, handler_seconds=handled.seconds
        )
        return Response(handled.body, handled.status, headers=dict(handled.headers))

    async def _handle(self, name: str, received: Received) -> Handled:
        handled = await self._pool.submit(name, received)
        self._metrics.count_observations(handled.observations)
        return handled

    async def _manage(self, request: Request, rest: list[str]) -> Response:
        """The read-only part of TorchServe's management API. Nothing can be changed over HTTP."""
        self._check(request, "management")
        if request.method != "GET":
            raise unknown_method()
        match rest:
            case []:
                return _json(listed(self._served.values()))
            case [name]:
                served = self._find(name, None)
            case [name, version]:
                served = self._find(name, version)
            case _:
                raise unknown_path()
        customized = request.query_params.get("customized", "").lower() == "true"
        metadata = (await self._handle(served.name, DESCRIBE)).body if customized else None
        return _json([describe(served, await self._pool.worker_states(served.name), metadata)])


def _json(document: object) -> Response:
    return Response(as_json(document), media_type=JSON)


def _error_response(error: SegserveError) -> Response:
    headers = {"retry-after": str(_RETRY_AFTER_S)} if isinstance(error, UnavailableError) else None
    return Response(orjson.dumps(error.as_document()), error.status, headers, JSON)
