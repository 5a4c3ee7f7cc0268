"""A replica: one process with the network of one archive, which handles requests in batches."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray
from ray import serve

from ...signing import TrustedKeys
from ..worker import Handled, Received, load_handler


@serve.deployment
class RayReplica:
    """The handler of an archive, see `load_handler`, as an actor of Ray Serve.

    A request waits `batch_delay_s` for others to join its batch. A batch that takes longer than
    `timeout_s` ends the replica, as TorchServe ends its worker.
    """

    def __init__(
        self,
        archive: str,
        overrides: Mapping[str, Any],
        *,
        batch_size: int,
        batch_delay_s: float,
        timeout_s: float,
        metrics: Mapping[str, Sequence[str]],
        trusted: TrustedKeys | None = None,
    ) -> None:
        self._timeout_s = timeout_s
        self._began_s: float | None = None
        self._folder = TemporaryDirectory(prefix="segserve-model-")
        # The network runs in one thread only. So there is only one pool of PyTorch threads.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="network")
        loading = self._thread.submit(
            load_handler,
            Path(archive),
            Path(self._folder.name),
            overrides=overrides,
            gpu_id=0 if ray.get_gpu_ids() else None,  # Ray shows a replica only its own GPU
            metrics=metrics,
            trusted=trusted,
        )
        self._handler = loading.result()
        batched: Any = self._batched  # the type lacks the decorator's own methods
        batched.set_max_batch_size(batch_size)
        batched.set_batch_wait_timeout_s(batch_delay_s)

    async def predict(self, request: Received) -> Handled:
        handled: Handled = await self._batched(request)
        return handled

    @serve.batch
    async def _batched(self, requests: list[Received]) -> list[Handled]:
        return await asyncio.get_running_loop().run_in_executor(
            self._thread, self._handle, requests
        )

    def _handle(self, requests: list[Received]) -> list[Handled]:
        self._began_s = time.monotonic()
        try:
            return self._handler.handle(requests)
        finally:
            self._began_s = None

    def check_health(self) -> None:
        """Ray Serve calls this regularly, and replaces a replica that raises."""
        began_s = self._began_s
        if began_s is not None and time.monotonic() - began_s > self._timeout_s:
            raise RuntimeError(f"a batch takes longer than responseTimeout, {self._timeout_s:g} s")
