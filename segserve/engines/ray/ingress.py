"""The HTTP application as a deployment of Ray Serve, over the replicas of every model."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request
from starlette.responses import Response

from ...runtime.errors import OverloadedError, UnavailableError
from ..workers.application import WORKER_GONE, HandlerApplication, queue_full
from ..workers.archives import ServedModel
from ..workers.messages import Handled, Received

# Ray Serve's states of a replica, in TorchServe's terms for workers.
_STATUS = {"RUNNING": "READY", "STOPPING": "UNLOADING"}
_LOADING = "LOADING"


class RayPool:
    """The replicas of all models.

    Args:
        handles: of the models' replicas, by the models' names.
        served: the same models.
    """

    def __init__(
        self, handles: Mapping[str, DeploymentHandle[Any]], served: Mapping[str, ServedModel]
    ) -> None:
        self._handles = handles
        self._served = served

    async def submit(self, model: str, received: Received) -> Handled:
        try:
            handled: Handled = await self._handles[model].predict.remote(received)
        except BackPressureError as error:
            raise OverloadedError(queue_full(self._served[model].config["jobQueueSize"])) from error
        except (RayActorError, DeploymentUnavailableError) as error:
            raise UnavailableError(WORKER_GONE) from error
        return handled

    async def worker_states(self, model: str) -> Sequence[str]:
        return await asyncio.to_thread(_replica_states, model)


@serve.deployment
class RayIngress:
    """See `HandlerApplication` and `RayPool` for the arguments."""

    def __init__(
        self,
        handles: Mapping[str, DeploymentHandle[Any]],
        served: Mapping[str, ServedModel],
        *,
        key_file: str | None,
        token_minutes: int,
        max_request_bytes: int,
    ) -> None:
        self._application = HandlerApplication(
            RayPool(handles, served),
            served,
            key_file=key_file,
            token_minutes=token_minutes,
            max_request_bytes=max_request_bytes,
        )

    async def __call__(self, request: Request) -> Response:
        """Handles one request. Ray Serve calls this for every request."""
        return await self._application.respond(request)


def _replica_states(model: str) -> list[str]:
    application = serve.get_replica_context().app_name
    states = serve.status().applications[application].deployments[model].replica_states
    return [
        _STATUS.get(str(state), _LOADING) for state, count in states.items() for _ in range(count)
    ]
