"""Engines run the handlers of archives behind the gateway: `torchserve`, `local` and `ray`.

`Engine` is their interface. What rejects a request before a handler has it is a `FrontendError`.
"""

import json
from collections.abc import AsyncIterable, Sequence
from enum import StrEnum
from importlib.util import find_spec
from typing import NamedTuple, Protocol


class EngineName(StrEnum):
    TORCHSERVE = "torchserve"
    LOCAL = "local"
    RAY = "ray"


def default_engine() -> EngineName:
    """TorchServe where it is installed, else `local`."""
    return EngineName.LOCAL if find_spec("ts") is None else EngineName.TORCHSERVE


Headers = Sequence[tuple[bytes, bytes]]
"""Names and values as they are sent, in their order."""


class EngineRequest(NamedTuple):
    """An HTTP request as the gateway forwards it.

    Attributes:
        target: path and query, percent-encoded as the client sent them.
        headers: without the token and the headers of a single connection; names in lower case.
        body: its chunks. Reading it raises a SegserveError if it is too large or too slow.
    """

    method: str
    target: bytes
    headers: Headers
    body: AsyncIterable[bytes]
    has_body: bool


class EngineResponse(NamedTuple):
    """An HTTP response with its whole body."""

    status: int
    headers: Headers
    body: bytes


class Engine(Protocol):
    """Starts, watches and stops the workers of all models, and forwards requests to them.

    `predict`, `describe` and `manage` raise a SegserveError or a FrontendError.
    """

    @property
    def models(self) -> Sequence[str]:
        """The names of the models that it was started with."""

    async def start(self, timeout_s: float) -> None:
        """Starts the workers and returns when each model has one that is ready.

        Raises:
            ServerError: a model cannot be loaded, or the time is over.
        """

    async def stop(self) -> None:
        """Ends the workers. May be called before `start` has returned."""

    async def not_ready_reason(self) -> str | None:
        """Why a model has no worker that is ready. Raises ServerError: the engine has ended."""

    async def predict(self, request: EngineRequest) -> EngineResponse: ...

    async def describe(self, request: EngineRequest) -> EngineResponse:
        """Lists the models, or describes one: `GET /models` and `GET /models/{model}`."""

    async def manage(self, request: EngineRequest) -> EngineResponse:
        """Forwards a request to the management API of the engine."""

    async def metrics(self) -> bytes:
        """The metrics of the engine in Prometheus's text format; empty if it does not respond."""


class ServerError(Exception):
    """A server cannot be configured, started or stopped. The message is one line."""


class FrontendError(Exception):
    """A request that reaches no handler. The response has the format of TorchServe's frontend."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.body = frontend_json({"code": status, "type": kind, "message": message})


def frontend_json(document: object) -> bytes:
    """JSON as TorchServe's frontend writes it."""
    text = json.dumps(document, indent=2, ensure_ascii=False)
    return f"{text}\n".encode("utf-8", errors="replace")


class BadTokenError(FrontendError):
    def __init__(self) -> None:
        message = (
            "Token Authorization failed. Token either incorrect, expired, or not provided correctly"
        )
        super().__init__(400, "InvalidKeyException", message)


def unknown_model(name: str) -> FrontendError:
    return FrontendError(404, "ModelNotFoundException", f"Model not found: {name}")


def unknown_version(name: str, version: str) -> FrontendError:
    message = f"Model version: {version} does not exist for model: {name}"
    return FrontendError(404, "ModelVersionNotFoundException", message)


def unknown_path() -> FrontendError:
    message = "Requested resource is not found, please refer to API document."
    return FrontendError(404, "ResourceNotFoundException", message)


def unknown_method() -> FrontendError:
    message = "Requested method is not allowed, please refer to API document."
    return FrontendError(405, "MethodNotAllowedException", message)
