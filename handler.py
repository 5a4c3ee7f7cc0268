"""TorchServe's adapter: requests in, responses out. `segserve.runtime` does the work, which the
archive carries.

TorchServe looks for exactly one class here, whose `initialize` it calls once a worker and `handle`
once a batch.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from time import perf_counter
from typing import Any

from segserve.runtime import errors
from segserve.runtime.cores import ParallelExecutor, available_cores
from segserve.runtime.decode.quarantine import Quarantine
from segserve.runtime.encode.response import Response
from segserve.runtime.inference import load_segmenter
from segserve.runtime.metrics import Telemetry
from segserve.runtime.pipeline import Pipeline
from segserve.runtime.settings import read_config
from segserve.runtime.telemetry import Tracing

logger = logging.getLogger(__name__)


class DeepLabHandler:
    """Serves the model of the archive that it lies in."""

    def initialize(self, context: Any) -> None:  # noqa: ANN401 - TorchServe's Context: nothing else of it is used
        """Loads the model onto the GPU that TorchServe assigned to this worker, else onto the CPU,
        and warms up.

        If the GPU cannot be used, now or later, the CPU replaces it, with a warning.

        Raises:
            RuntimeError: the archive cannot be served. TorchServe reports a failed load only for
                this type.
        """
        properties = context.system_properties
        gpu_id = properties.get("gpu_id")  # None or -1 without a GPU
        try:
            config = read_config(context.model_yaml_config)
            threads = config.handler.threads or max(1, available_cores() // config.maxWorkers)
            segmenter = load_segmenter(
                Path(properties["model_dir"]),
                device="cpu" if gpu_id in (None, -1) else f"cuda:{gpu_id}",
                settings=config.handler,
                threads=threads,
            )
            self._executor = ParallelExecutor(threads, segmenter.use_threads)
            self._pipeline = Pipeline(segmenter, config.handler, Quarantine.in_temporary_folder())
            tracing = Tracing.from_environment(os.environ)
        except errors.ModelError as error:
            raise RuntimeError(f"cannot serve this archive: {error}") from None
        self._pipeline.warm_up()
        # One for each device, because failover changes it: a failed GPU is not queried any more.
        self._telemetry = cache(
            partial(Telemetry, segmenter.record, server=context.metrics, tracing=tracing)
        )
        self._telemetry(str(segmenter.device)).loaded()
        facts = segmenter.record.name, segmenter.device, segmenter.precision, segmenter.backend
        logger.info("serving %s on %s in %s by %s", *facts)

    def handle(self, data: Sequence[Mapping[str, object]], context: Any) -> list[bytes]:  # noqa: ANN401
        """Handles every request of a batch separately, and returns the bodies in order."""
        began_s = perf_counter()
        headers = [context.get_all_request_header(index) for index in range(len(data))]
        responses = self._executor.map(
            self._respond, list(zip(data, headers, strict=True)), again=_lacks_memory
        )
        for index, reply in enumerate(responses):
            context.set_response_status(reply.status, reply.phrase, index)
            context.set_response_content_type(index, reply.media_type)
            context.set_response_header(index, "X-Content-Type-Options", "nosniff")
            if reply.content_encoding:
                context.set_response_header(index, "Content-Encoding", reply.content_encoding)
            if reply.stats is not None:
                context.set_response_header(index, "Server-Timing", reply.server_timing)
        telemetry = self._telemetry(str(self._pipeline.segmenter.device))
        telemetry.responded(responses, headers, seconds=perf_counter() - began_s)
        return [reply.body for reply in responses]

    def _respond(self, request: tuple[Mapping[str, object], Mapping[str, object]]) -> Response:
        row, headers = request
        if _is_describe_request(row, headers):
            return self._pipeline.describe()
        return self._pipeline.respond(row, headers)


def _lacks_memory(reply: Response) -> bool:
    return reply.status == errors.OutOfMemoryError.status


def _is_describe_request(row: Mapping[str, object], headers: Mapping[str, object]) -> bool:
    """TorchServe marks a describe request by a header, which a client can send as well; only it
    sends no body.
    """
    return not row and str(headers.get("describe", "")).lower() == "true"
