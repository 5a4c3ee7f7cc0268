"""A loaded handler, called with one batch of requests at a time.

Nothing here imports `segserve.runtime`, for the reason given in `loading`.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...signing import TrustedKeys
from .context import HandlerContext
from .loading import load_handler
from .messages import Handled, Received


class BatchHandler:
    """The handler of an archive. For the arguments see `load_handler`."""

    def __init__(
        self,
        archive: Path,
        folder: Path,
        *,
        overrides: Mapping[str, Any],
        gpu_id: int | None,
        metrics: Mapping[str, Sequence[str]],
        trusted: TrustedKeys | None = None,
    ) -> None:
        self._handler, self._process = load_handler(
            archive, folder, overrides=overrides, gpu_id=gpu_id, metrics=metrics, trusted=trusted
        )

    def handle(self, requests: Sequence[Received]) -> list[Handled]:
        """Returns one response per request, in the same order."""
        context = HandlerContext(self._process, [request.headers for request in requests])
        began_s = time.monotonic()
        bodies = self._handler.handle([request.row for request in requests], context)
        seconds = time.monotonic() - began_s
        observations = self._process.metrics.drain()
        return [
            Handled(
                context.get_response_status(index)[0],
                bytes(body),
                context.get_response_headers(index),
                seconds,
                () if index else observations,
            )
            for index, body in enumerate(bodies)
        ]
