"""The engine `ray`: the replicas of Ray Serve, on a Ray of its own on this machine."""

import asyncio
import logging
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ...runtime.errors import ModelError
from ...runtime.files import write_whole
from ...signing import TrustedKeys
from ..environment import use_tmp_dir
from ..errors import ServerError
from ..store import fill_store
from ..torchserve.launch import make_tmp_dir
from ..workers.archives import ModelEntry, read_archives
from ..workers.engine import PoolEngine
from . import Arguments

# Ray adds /r/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store.1
_LONGEST_TMP_BYTES = 36
_LOOPBACK = "127.0.0.1"
_OBJECT_STORE_BYTES = 2**29  # requests and responses in flight; the rest is spilled to the disk
_RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_METRICS_COLLECTION": "0",  # the gateway has the metrics
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # 0 keeps Ray on the loopback interface
    "RAY_AUTH_MODE": "token",  # Ray's ports require the token of this run
}


class RayEngine(PoolEngine):
    """See `Engine`.

    Args:
        archives: the archives to serve.
        run_dir: the folder for copies of the archives and for Ray's files.
        config: the settings of config.properties; none is used by this engine.
        trusted: the keys that archives must be signed with.

    Raises:
        ServerError: Ray is not installed, or an archive cannot be served.
        SignatureError: an archive is not signed by a trusted key.
    """

    def __init__(
        self,
        archives: Sequence[Path],
        run_dir: Path,
        *,
        config: Mapping[str, str],
        trusted: TrustedKeys | None,
    ) -> None:
        if find_spec("ray") is None:
            raise ServerError("Ray is not installed; install it with: pip install 'segserve[ray]'")
        names = fill_store(archives, run_dir / "model-store", trusted=trusted)
        paths = [run_dir / "model-store" / f"{name}.mar" for name in names]
        self._arguments = Arguments()
        self._tmp_dir = make_tmp_dir(run_dir, longest_bytes=_LONGEST_TMP_BYTES)
        try:
            self._archives = read_archives(paths)
        except ModelError as error:
            raise ServerError(str(error)) from error
        use_tmp_dir(self._tmp_dir)
        token_file = self._tmp_dir / "ray_token"
        write_whole(token_file, secrets.token_hex(32), mode=0o600)
        os.environ.update({**_RAY_ENVIRONMENT, "RAY_AUTH_TOKEN_PATH": str(token_file)})
        from .ingress import RayPool

        self._handles: dict[str, Any] = {}
        served = {archive.name: ModelEntry.of(archive) for archive in self._archives}
        super().__init__(RayPool(self._handles, served, lambda model: model), served)

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
        import ray
        from ray import serve

        from .build import cores_needed, model_application

        ray.init(
            address="local",
            _node_ip_address=_LOOPBACK,
            _temp_dir=str(self._tmp_dir / "r"),  # Ray opens it to all users; its parent is closed
            num_cpus=cores_needed(self._archives, self._arguments),
            object_store_memory=_OBJECT_STORE_BYTES,
            include_dashboard=False,
            logging_level=logging.WARNING,
        )
        quiet = {"enable_access_log": False, "log_level": "WARNING"}
        serve.start(proxy_location="Disabled", logging_config=quiet)
        for archive in self._archives:
            application = model_application(archive, self._arguments)
            try:
                self._handles[archive.name] = serve.run(
                    application, name=archive.name, route_prefix=None, logging_config=quiet
                )
            except RuntimeError as error:
                reason = _replica_error(archive.name) or str(error)
                raise ServerError(f"the model {archive.name!r} failed to load: {reason}") from error


def _stop() -> None:
    import ray
    from ray import serve

    serve.shutdown()  # type: ignore[no-untyped-call]
    ray.shutdown()


def _replica_error(application: str) -> str:
    """The error that kept a replica from starting, from the traceback that Ray Serve stores."""
    from ray import serve

    deployments = serve.status().applications[application].deployments.values()
    lines = "\n".join(deployment.message for deployment in deployments).splitlines()
    errors = [line.partition("Error: ")[2].strip() for line in lines if "Error: " in line]
    reported = [error for error in errors if not error.startswith("Traceback")]
    return reported[-1] if reported else ""
