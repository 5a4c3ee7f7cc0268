"""The HTTP gateway. It knows paths, tokens and limits, and nothing about images."""

import asyncio
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request
from starlette.responses import Response

from ...gateway import torchserve_errors as refusals
from ...gateway.torchserve_errors import RefusalError, as_json
from ...runtime.errors import InternalError, OverloadedError, SegserveError, UnavailableError
from .description import Served, describe, listed
from .exchange import DESCRIBE, Handled, Received
from .metrics import CONTENT_TYPE, Metrics
from .rows import as_headers, as_row, read_body, read_to_its_end
from .tokens import Kind, Tokens

logger = logging.getLogger("ray.serve")

JSON = "application/json"
_RETRY_AFTER_S = 1
_HEADERS = {  # TorchServe's, and one that stops browsers from guessing the media type
    "pragma": "no-cache",
    "cache-control": "no-cache; no-store, must-revalidate, private",
    "expires": "Thu, 01 Jan 1970 00:00:00 UTC",
    "x-content-type-options": "nosniff",
}


@serve.deployment
class Door:
    """The gateway. It serves every path of the contract, and the read-only paths of TorchServe's
    management API.

    Args:
        handles: of the models' replicas, by the models' names.
        served: the same models.
        key_file: the file of the tokens; None if requests need none.
        token_minutes: the lifetime of new tokens.
        max_request_bytes: a larger request is rejected.
    """

    def __init__(
        self,
        handles: Mapping[str, DeploymentHandle[Any]],
        served: Mapping[str, Served],
        *,
        key_file: str | None,
        token_minutes: int,
        max_request_bytes: int,
    ) -> None:
        self._handles = handles
        self._served = served
        self._tokens = Tokens(Path(key_file), minutes=token_minutes) if key_file else None
        self._max_request_bytes = max_request_bytes
        self._metrics = Metrics()

    async def __call__(self, request: Request) -> Response:
        """Handles one request. Ray Serve calls this for every request."""
        try:
            response = await self._answer(request)
        except RefusalError as refusal:
            response = Response(refusal.body, refusal.status, media_type=JSON)
        except SegserveError as error:
            response = _refused(error)
        except Exception:
            logger.exception("a request failed")
            response = _refused(
                InternalError("the server failed at this request; its log says why")
            )
        self._metrics.count_answer(response.status_code)
        response.headers.update(_HEADERS)
        return response

    async def _answer(self, request: Request) -> Response:
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
                raise refusals.unknown_path()

    def _check(self, request: Request, kind: Kind) -> None:
        if self._tokens:
            self._tokens.check(request.headers.get("authorization"), kind)

    def _find(self, name: str, version: str | None) -> Served:
        served = self._served.get(name)
        if served is None:
            raise refusals.unknown_model(name)
        if version not in (None, served.version):
            raise refusals.unknown_version(name, str(version))
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
        """Passes a request to a replica and returns its response.

        Raises:
            OverloadedError: too many requests wait.
            UnavailableError: the replica that had this request is gone.
        """
        try:
            handled: Handled = await self._handles[name].predict.remote(received)
        except BackPressureError as error:
            raise OverloadedError(
                f"{self._served[name].config['jobQueueSize']} requests wait already; send fewer at "
                "once, or again later"
            ) from error
        except (RayActorError, DeploymentUnavailableError) as error:
            raise UnavailableError(
                "the process that had this request is gone; send it again"
            ) from error
        self._metrics.count_observations(handled.observations)
        return handled

    async def _manage(self, request: Request, rest: list[str]) -> Response:
        """The read-only part of TorchServe's management API. Nothing can be changed over HTTP."""
        self._check(request, "management")
        if request.method != "GET":
            raise refusals.unknown_method()
        match rest:
            case []:
                return _json(listed(self._served.values()))
            case [name]:
                served = self._find(name, None)
            case [name, version]:
                served = self._find(name, version)
            case _:
                raise refusals.unknown_path()
        customized = request.query_params.get("customized", "").lower() == "true"
        told = (await self._handle(served.name, DESCRIBE)).body if customized else None
        return _json(
            [describe(served, await asyncio.to_thread(_replica_states, served.name), told)]
        )


def _replica_states(model: str) -> Mapping[str, int]:
    application = serve.get_replica_context().app_name
    states = serve.status().applications[application].deployments[model].replica_states
    return {str(state): count for state, count in states.items()}  # the names of the states


def _json(document: object) -> Response:
    return Response(as_json(document), media_type=JSON)


def _refused(error: SegserveError) -> Response:
    headers = {"retry-after": str(_RETRY_AFTER_S)} if isinstance(error, UnavailableError) else None
    return Response(orjson.dumps(error.as_document()), error.status, headers, JSON)
