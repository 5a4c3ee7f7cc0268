"""The gateway as a deployment of Ray Serve, over the replicas of every model."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message

from ...gateway.app import Gateway
from ...gateway.settings import Limits
from ...gateway.tokens import TokenFile
from ...runtime.errors import OverloadedError, UnavailableError
from ..workers.archives import ServedArchive
from ..workers.engine import WORKER_GONE, PoolEngine, queue_full
from ..workers.messages import Handled, Received

# Ray Serve's states of a replica, in TorchServe's terms for workers.
_STATUS = {"RUNNING": "READY", "STOPPING": "UNLOADING"}
_LOADING = "LOADING"


class RayPool(PoolEngine):
    """The replicas of all models, which Ray Serve starts and stops.

    Args:
        handles: of the models' replicas, by the models' names.
        application: the Ray Serve application that has the replicas of all models; by default each
            model has an application of its own, with its name.
    """

    def __init__(
        self,
        served: Sequence[ServedArchive],
        handles: Mapping[str, DeploymentHandle[Any]],
        application: str | None = None,
    ) -> None:
        super().__init__(served)
        self._handles = handles
        self._application = application

    async def start(self, timeout_s: float) -> None:
        """Does nothing: Ray Serve starts the replicas."""

    async def stop(self) -> None:
        """Does nothing: Ray Serve stops the replicas."""

    async def submit(self, model: str, received: Received) -> Handled:
        try:
            handled: Handled = await self._handles[model].predict.remote(received)
        except BackPressureError as error:
            raise OverloadedError(queue_full(self._served[model].config.jobQueueSize)) from error
        except (RayActorError, DeploymentUnavailableError) as error:
            raise UnavailableError(WORKER_GONE) from error
        return handled

    async def worker_states(self, model: str) -> Sequence[str]:
        return await asyncio.to_thread(_replica_states, self._application or model, model)


def _replica_states(application: str, model: str) -> list[str]:
    states = serve.status().applications[application].deployments[model].replica_states
    return [
        _STATUS.get(str(state), _LOADING) for state, count in states.items() for _ in range(count)
    ]


@serve.deployment
class RayIngress:
    """The applications of a `Gateway` on the one port of Ray Serve.

    Args:
        handles: see `RayPool`.
        token_file: path of the token's file; empty if requests need no token.
        max_request_bytes: a larger request is rejected.
    """

    def __init__(
        self,
        served: Sequence[ServedArchive],
        handles: Mapping[str, DeploymentHandle[Any]],
        *,
        token_file: str,
        max_request_bytes: int,
    ) -> None:
        gateway = Gateway(
            engine=RayPool(served, handles, serve.get_replica_context().app_name),
            token=TokenFile(Path(token_file)) if token_file else None,
            management_token=None,
            limits=Limits(request_bytes=max_request_bytes),
        )
        self._inference, self._metrics = gateway.inference_app(), gateway.metrics_app()

    async def __call__(self, request: Request) -> Response:
        """Handles one request. Ray Serve calls this for every request."""
        app = self._metrics if request.url.path == "/metrics" else self._inference
        scope = {**request.scope, "state": {"abort": lambda: None}}
        scope.setdefault("raw_path", scope["path"].encode())
        sent: list[Message] = []

        async def send(message: Message) -> None:
            sent.append(message)

        await app(scope, request.receive, send)
        start, *chunks = sent
        response = Response(b"".join(chunk.get("body", b"") for chunk in chunks), start["status"])
        response.raw_headers = start["headers"]
        return response
