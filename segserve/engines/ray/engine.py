"""The engine `ray`: the replicas of Ray Serve, on a Ray of its own on this machine."""

import asyncio
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray import serve

from ..errors import ServerError
from ..workers.archives import ServedArchive
from . import Arguments
from .build import RayPool, cores_needed, model_application

_LOOPBACK = "127.0.0.1"
_OBJECT_STORE_BYTES = 2**29  # requests and responses in flight; the rest is spilled to the disk


class RayEngine(RayPool):
    """See `Engine`.

    Args:
        archives: the archives to serve, in the model store of this run.
        tmp_dir: the folder for Ray's files, which is removed at the end.
    """

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
        await asyncio.to_thread(_stop)
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


def _stop() -> None:
    serve.shutdown()  # type: ignore[no-untyped-call]
    ray.shutdown()


def _replica_error(application: str) -> str:
    """The error that kept a replica from starting, from the traceback that Ray Serve stores."""
    deployments = serve.status().applications[application].deployments.values()
    lines = "\n".join(deployment.message for deployment in deployments).splitlines()
    errors = [line.partition("Error: ")[2].strip() for line in lines if "Error: " in line]
    reported = [error for error in errors if not error.startswith("Traceback")]
    return reported[-1] if reported else ""
