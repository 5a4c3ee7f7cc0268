"""The application of Ray Serve: the gateway as its ingress, and the replicas of every model."""

import asyncio
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import ray
from ray import serve
from ray.exceptions import RayActorError
from ray.serve import Application
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message

from ...gateway.admission import TokenFile
from ...gateway.app import Gateway
from ...gateway.settings import GatewaySettings
from ...runtime.cores import available_cores
from ...runtime.errors import OverloadedError, UnavailableError
from ...runtime.metrics import OWN
from ...runtime.settings import ModelConfig
from ...signing import TrustedKeys
from .. import ServerError
from ..pool import WORKER_GONE, PoolEngine, queue_full
from ..store import ServedArchive, read_archive
from ..worker import Handled, Received
from . import ARCHIVE_VARIABLE, Arguments
from .replica import RayReplica

_BATCHES_AHEAD = 2  # one that is computed and one that waits, so that the network never idles
_HEALTH_CHECK_PERIOD_S = 2.0  # a replica that is gone is noticed as soon
_INGRESS_REQUESTS = 256
_LOOPBACK = "127.0.0.1"
_OBJECT_STORE_BYTES = 2**29  # requests and responses in flight; the rest is spilled to the disk


class RayPool(PoolEngine):
    """The replicas of all models, which Ray Serve starts and stops.

    They are all of one Ray Serve `application`; by default, each model has its own, with its name.
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

    async def start(self, timeout_s: float) -> None: ...

    async def stop(self) -> None: ...

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
        "READY" if state == "RUNNING" else "LOADING"
        for state, count in states.items()
        for _ in range(count)
    ]


@serve.deployment
class RayIngress:
    """The applications of a `Gateway` on the one port of Ray Serve."""

    def __init__(
        self,
        served: Sequence[ServedArchive],
        handles: Mapping[str, DeploymentHandle[Any]],
        *,
        token_file: Path | None,
        max_request_bytes: int,
    ) -> None:
        gateway = Gateway(
            engine=RayPool(served, handles, serve.get_replica_context().app_name),
            token=TokenFile(token_file) if token_file else None,
            management_token=None,
            settings=GatewaySettings(),
            max_request_bytes=max_request_bytes,
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


def build_app(arguments: Arguments) -> Application:
    archives = read_named_archives(arguments)
    queued = sum(archive.config.jobQueueSize for archive in archives)
    ingress = RayIngress.options(  # type: ignore[attr-defined]
        num_replicas=arguments.gateways,
        ray_actor_options={"num_cpus": 0},
        # the models' queues are full before the ingress is
        max_ongoing_requests=max(_INGRESS_REQUESTS, 2 * queued),
        health_check_period_s=_HEALTH_CHECK_PERIOD_S,
    )
    application: Application = ingress.bind(
        archives,
        {archive.name: model_application(archive, arguments) for archive in archives},
        token_file=_token_file(arguments),
        max_request_bytes=arguments.max_request_bytes,
    )
    return application


def _token_file(arguments: Arguments) -> Path | None:
    if not arguments.token_authorization:
        return None
    path = Path(arguments.token_file).resolve()
    if not path.exists():
        TokenFile.generate(path)
    return path


def _trusted(arguments: Arguments) -> TrustedKeys | None:
    return TrustedKeys.read(Path(arguments.trust)) if arguments.trust else None


def read_named_archives(arguments: Arguments) -> list[ServedArchive]:
    paths = [Path(path.strip()) for path in arguments.archive.split(",") if path.strip()]
    if not paths:
        raise ServerError(f"no archive was named: give archive=FILE.mar, or set {ARCHIVE_VARIABLE}")
    trusted = _trusted(arguments)
    archives = []
    for path in paths:
        if trusted is not None:
            trusted.verify(path)
        archives.append(read_archive(path))
    names = [archive.name for archive in archives]
    if len(set(names)) < len(names):
        raise ServerError(f"two archives have the same model name: {', '.join(sorted(names))}")
    return archives


def cores_needed(archives: Sequence[ServedArchive], arguments: Arguments) -> int:
    """The cores that Ray needs for all replicas. They may be more than the machine has."""
    replicas = [Replicas.of(archive.config, arguments) for archive in archives]
    return sum(each.most * each.threads for each in replicas)


@dataclass(frozen=True)
class Replicas:
    """How many of a model there are, and how many threads each has."""

    least: int
    most: int
    threads: int

    @classmethod
    def of(cls, config: ModelConfig, arguments: Arguments) -> Self:
        most = arguments.max_replicas or max(config.maxWorkers, arguments.min_replicas or 1)
        least = arguments.min_replicas or min(config.minWorkers, most)
        threads = arguments.threads or config.handler.threads or max(1, available_cores() // most)
        return cls(least, most, threads)

    def scaling(self, target: int) -> dict[str, Any]:
        """A fixed number, or as many as keep the pending requests at `target` a replica."""
        if self.least == self.most:
            return {"num_replicas": self.least}
        limits = {"min_replicas": self.least, "max_replicas": self.most}
        return {"autoscaling_config": {**limits, "target_ongoing_requests": target}}


def model_application(archive: ServedArchive, arguments: Arguments) -> Application:
    config = archive.config
    replicas = Replicas.of(config, arguments)
    model = RayReplica.options(  # type: ignore[attr-defined]
        name=archive.name,
        ray_actor_options={"num_cpus": replicas.threads, "num_gpus": _gpus(config, replicas.most)},
        max_ongoing_requests=_BATCHES_AHEAD * config.batchSize,
        max_queued_requests=config.jobQueueSize,
        health_check_period_s=_HEALTH_CHECK_PERIOD_S,
        health_check_timeout_s=config.responseTimeout,
        max_constructor_retry_count=1,  # an archive that cannot be loaded stays one that cannot
        **replicas.scaling(config.batchSize),
    )
    workers = {"minWorkers": replicas.least, "maxWorkers": replicas.most}
    bound: Application = model.bind(
        str(archive.path),
        {**workers, "handler": {"threads": replicas.threads}},
        batch_size=config.batchSize,
        batch_delay_s=config.maxBatchDelay / 1000,
        timeout_s=config.responseTimeout,
        metrics={metric.name: metric.labels for metric in OWN},
        trusted=_trusted(arguments),
    )
    return bound


def _gpus(config: ModelConfig, replicas: int) -> float:
    """A GPU for a replica, or a share of one where there are fewer."""
    if config.deviceType == "cpu" or not ray.is_initialized():
        return 0.0
    there = ray.cluster_resources().get("GPU", 0)  # type: ignore[no-untyped-call]
    return float(min(1, there / replicas))


class RayEngine(RayPool):
    """See `Engine`. `tmp_dir` is for Ray's files, and is removed at the end."""

    def __init__(self, archives: Sequence[ServedArchive], tmp_dir: Path) -> None:
        self._running: dict[str, Any] = {}
        super().__init__(archives, self._running)
        self._tmp_dir = tmp_dir

    async def start(self, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.to_thread(self._start)
        except TimeoutError:
            raise ServerError(f"the replicas are not ready after {timeout_s:g} s") from None

    async def stop(self) -> None:
        await asyncio.to_thread(serve.shutdown)
        await asyncio.to_thread(ray.shutdown)
        shutil.rmtree(self._tmp_dir, ignore_errors=True)

    def _start(self) -> None:
        archives, arguments = [*self._served.values()], Arguments()
        ray.init(
            address="local",
            _node_ip_address=_LOOPBACK,
            _temp_dir=str(self._tmp_dir / "r"),  # Ray opens it to all users; its parent is closed
            num_cpus=cores_needed(archives, arguments),
            object_store_memory=_OBJECT_STORE_BYTES,
            include_dashboard=False,
            logging_level=logging.WARNING,
        )
        quiet = {"enable_access_log": False, "log_level": "WARNING"}
        serve.start(proxy_location="Disabled", logging_config=quiet)
        for archive in archives:
            application = model_application(archive, arguments)
            try:
                self._running[archive.name] = serve.run(
                    application, name=archive.name, route_prefix=None, logging_config=quiet
                )
            except RuntimeError as error:
                reason = _replica_error(archive.name) or str(error)
                raise ServerError(f"the model {archive.name!r} failed to load: {reason}") from error


def _replica_error(application: str) -> str:
    """The error that kept a replica from starting, from the traceback that Ray Serve stores."""
    deployments = serve.status().applications[application].deployments.values()
    lines = "\n".join(deployment.message for deployment in deployments).splitlines()
    errors = [line.partition("Error: ")[2].strip() for line in lines if "Error: " in line]
    reported = [error for error in errors if not error.startswith("Traceback")]
    return reported[-1] if reported else ""
