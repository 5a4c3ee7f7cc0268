"""The engine `local`: worker processes of the gateway, without Java, TorchServe and Ray."""

import asyncio
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...runtime.errors import ModelError
from ...signing import TrustedKeys
from ..environment import use_tmp_dir
from ..errors import ServerError
from ..store import fill_store
from ..torchserve.launch import make_tmp_dir
from ..workers.archives import ModelEntry, ServedArchive, read_archives
from ..workers.engine import PoolEngine
from .pool import LocalPool


class LocalEngine(PoolEngine):
    """See `Engine`. Create it in a running event loop.

    Args:
        archives: the archives to serve.
        run_dir: the folder for copies of the archives.
        config: the settings of config.properties; only `job_queue_size` is used.
        trusted: the keys that archives must be signed with.

    Raises:
        ServerError: an archive cannot be served.
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
        store = run_dir / "model-store"
        names = fill_store(archives, store, trusted=trusted)
        self._tmp_dir = make_tmp_dir(run_dir)
        use_tmp_dir(self._tmp_dir)
        try:
            read = read_archives(store / f"{name}.mar" for name in names)
        except ModelError as error:
            raise ServerError(str(error)) from error
        queued = [_with_queue_size(archive, config) for archive in read]
        self._workers = LocalPool(queued)
        super().__init__(
            self._workers, {archive.name: ModelEntry.of(archive) for archive in queued}
        )

    async def start(self, timeout_s: float) -> None:
        self._workers.start()
        ready = asyncio.ensure_future(self._wait_ready())
        outcomes: set[asyncio.Future[Any]] = {ready, self._workers.failure}
        done, _ = await asyncio.wait(
            outcomes,
            timeout=timeout_s,
            return_when=asyncio.FIRST_COMPLETED,
        )
        ready.cancel()
        if self._workers.failure in done:
            raise ServerError(self._workers.failure.result())
        if not done:
            raise ServerError(f"{await self.obstacle()} after {timeout_s:g} s")

    async def stop(self) -> None:
        await self._workers.stop()
        shutil.rmtree(self._tmp_dir, ignore_errors=True)

    async def _wait_ready(self) -> None:
        while await self.obstacle() is not None:
            await asyncio.sleep(0.05)


def _with_queue_size(archive: ServedArchive, config: Mapping[str, str]) -> ServedArchive:
    """The archive, with TorchServe's `job_queue_size` unless its own configuration has a value."""
    model_config = archive.config
    if "job_queue_size" not in config or "jobQueueSize" in model_config.model_fields_set:
        return archive
    size = int(config["job_queue_size"])
    return replace(archive, config=model_config.model_copy(update={"jobQueueSize": size}))
