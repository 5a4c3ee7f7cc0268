"""Builds the application: the ingress, and the replicas of every model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import ray
from ray.serve import Application

from ...gateway.tokens import TokenFile
from ...runtime.cores import available_cores
from ...runtime.errors import ModelError
from ...runtime.settings import ModelConfig
from ...runtime.telemetry.metrics import OWN
from ...signing import TrustedKeys
from ..workers.archives import ServedArchive, read_archives
from . import ARCHIVE_VARIABLE, Arguments
from .ingress import RayIngress
from .replica import RayReplica

_BATCHES_AHEAD = 2  # one that is computed and one that waits, so that the network never idles
_HEALTH_CHECK_PERIOD_S = 2.0  # a replica that is gone is noticed as soon
_INGRESS_REQUESTS = 256


def build_app(arguments: Arguments) -> Application:
    """The application of a cluster; see `segserve.engines.ray.app`."""
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


def _token_file(arguments: Arguments) -> str:
    if not arguments.token_authorization:
        return ""
    path = Path(arguments.token_file).resolve()
    if not path.exists():
        TokenFile.generate(path)
    return str(path)


def _trusted(arguments: Arguments) -> TrustedKeys | None:
    return TrustedKeys.read(Path(arguments.trust)) if arguments.trust else None


def read_named_archives(arguments: Arguments) -> list[ServedArchive]:
    paths = [path.strip() for path in arguments.archive.split(",") if path.strip()]
    if not paths:
        raise ModelError(f"no archive was named: give archive=FILE.mar, or set {ARCHIVE_VARIABLE}")
    return read_archives(paths, trusted=_trusted(arguments))


def cores_needed(archives: Sequence[ServedArchive], arguments: Arguments) -> int:
    """The cores that Ray needs to start all replicas, whatever the machine has: like TorchServe's
    workers, the replicas of several models share its cores.
    """
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
    """The replicas of one model."""
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
