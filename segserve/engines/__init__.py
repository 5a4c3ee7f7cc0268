"""Engines run the handlers of archives behind the gateway: `torchserve`, `local` and `ray`.

`Engine` is their interface. Each says how to start, watch and stop the workers.
"""

from collections.abc import AsyncIterable, Sequence
from enum import StrEnum
from importlib.util import find_spec
from typing import NamedTuple, Protocol


class EngineName(StrEnum):
    """What runs the handlers of the archives."""

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
        body: the rest of the body, in chunks. Reading it raises a SegserveError if it is too large
            or too slow.
        has_body: whether the request has a body.
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

    The methods `predict`, `describe` and `manage` raise a SegserveError, or a FrontendError for
    what never reaches a handler.
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

    async def obstacle(self) -> str | None:
        """Why a model has no worker that is ready. Raises ServerError: the engine has ended."""

    async def predict(self, request: EngineRequest) -> EngineResponse:
        """Forwards a request for a prediction."""

    async def describe(self, request: EngineRequest) -> EngineResponse:
        """Lists the models, or describes one: `GET /models` and `GET /models/{model}`."""

    async def manage(self, request: EngineRequest) -> EngineResponse:
        """Forwards a request to the management API of the engine."""

    async def metrics(self) -> bytes:
        """The metrics of the engine in Prometheus's text format; empty if it does not respond."""
