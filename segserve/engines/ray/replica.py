"""A replica: one process with the network of one archive. It processes waiting requests in
batches.
"""

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
from .context import Context
from .exchange import Handled, Received
from .loading import load_handler


@serve.deployment
class Model:
    """The handler of an archive, as an actor of Ray Serve.

    Args:
        archive: path of the archive on this machine.
        overrides: see `load_handler`.
        batch_size: the largest number of requests in a batch.
        batch_delay_s: how long a request waits for others to join its batch.
        timeout_s: a batch that takes longer ends the replica, as TorchServe ends its worker.
        metrics: see `load_handler`.
        trusted: see `load_handler`.
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
        gpu_id = 0 if ray.get_gpu_ids() else None  # Ray shows a replica only its own GPU
        self._handler, self._worker = self._thread.submit(
            load_handler,
            Path(archive),
            Path(self._folder.name),
            overrides=overrides,
            gpu_id=gpu_id,
            metrics=metrics,
            trusted=trusted,
        ).result()
        together: Any = self._together  # the type lacks the decorator's own methods
        together.set_max_batch_size(batch_size)
        together.set_batch_wait_timeout_s(batch_delay_s)

    async def predict(self, request: Received) -> Handled:
        handled: Handled = await self._together(request)
        return handled

    @serve.batch
    async def _together(self, requests: list[Received]) -> list[Handled]:
        return await asyncio.get_running_loop().run_in_executor(
            self._thread, self._handle, requests
        )

    def _handle(self, requests: list[Received]) -> list[Handled]:
        context = Context(self._worker, [request.headers for request in requests])
        self._began_s = began_s = time.monotonic()
        try:
            bodies = self._handler.handle([request.row for request in requests], context)
        finally:
            self._began_s = None
        seconds = time.monotonic() - began_s
        observations = self._worker.metrics.drain()
        return [
            Handled(
                context.get_response_status(place)[0],
                body,
                context.get_response_headers(place),
                seconds,
                () if place else observations,
            )
            for place, body in enumerate(bodies)
        ]

    def check_health(self) -> None:
        """Ray Serve calls this regularly, and replaces a replica that raises.

        Raises:
            RuntimeError: a batch takes longer than `timeout_s`.
        """
        began_s = self._began_s
        if began_s is not None and time.monotonic() - began_s > self._timeout_s:
            raise RuntimeError(f"a batch takes longer than responseTimeout, {self._timeout_s:g} s")
