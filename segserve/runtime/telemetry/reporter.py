"""Reports the statistics of requests to the server's metrics, and to traces if these are enabled.

It uses only one part of TorchServe's context: `metrics.cache`, which holds the metrics of the
server's metrics file by kind and name. Ray Serve's replacement offers the same. Metrics that the
server does not declare are not reported.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import psutil

from ..encode.response import Response
from ..record import ModelRecord
from . import metrics as m
from .request_stats import RequestStats
from .tracing import Tracing

logger = logging.getLogger(__name__)

_LABELS = {metric.name: metric.labels for metric in m.OWN}

# TorchServe reads a metric as a line of text, in which these characters have a meaning.
_NOT_IN_A_LABEL = str.maketrans("|,:#\n\r", "______")


class Sink(Protocol):
    """A metric of the server, with the methods of `ts.metrics.caching_metric.CachingMetric`."""

    dimension_names: Sequence[str]

    def add_or_update(self, value: float, dimension_values: list[str]) -> None: ...


class MetricsCache(Protocol):
    """The part of `context.metrics` that is used."""

    @property
    def cache(self) -> Mapping[object, Mapping[str, Sink]]: ...


class Telemetry:
    """Reports the metrics and traces of one worker.

    Args:
        record: the model's record.
        device: what computes: `cpu`, or for example `cuda:0`.
        server: the metrics of the server; None if it has none.
        tracing: exports spans; None to disable traces.
    """

    def __init__(
        self,
        record: ModelRecord,
        device: str,
        server: MetricsCache | None,
        tracing: Tracing | None = None,
    ) -> None:
        self._record = record
        self._device = device
        self._model = (_label(record.name), _label(record.version))
        self._sinks = _sinks(server)
        self._tracing = tracing
        self._process = psutil.Process()

    def loaded(self) -> None:
        """Reports the start, and 0 for counters that would be missing until their first event."""
        if not self._sinks:
            logger.info(
                "the server's metrics file names none of segserve's metrics: none are reported"
            )
        self._report(m.WORKER_STARTS, 1)
        self._report(m.BACKGROUND_ONLY, 0)
        for label in self._record.labels:
            self._report(m.CLASS_COVERAGE, 0, label)
        self._report_memory()

    def responded(
        self,
        responses: Sequence[Response],
        headers: Sequence[Mapping[str, object]],
        *,
        seconds: float,
    ) -> None:
        """Reports the requests of one batch.

        Args:
            headers: those of each request, for traces.
            seconds: the duration of the batch.
        """
        reported = [
            (reply, reply.stats, given)
            for reply, given in zip(responses, headers, strict=True)
            if reply.stats is not None
        ]
        if reported and self._sinks:
            self._report(m.BATCH_SIZE, len(reported))
            self._report_memory()
            for reply, stats, _ in reported:
                self._report_request(reply, stats, seconds)
        if self._tracing is not None:
            for reply, stats, given in reported:
                self._tracing.trace(self._record, reply.status, stats, given)

    def _report_request(self, reply: Response, stats: RequestStats, seconds: float) -> None:
        self._report(m.REQUESTS, 1, str(reply.status), stats.encoding, stats.error)
        self._report(m.REQUEST_SECONDS, seconds)
        for stage, stage_seconds in stats.timings.seconds.items():
            self._report(m.STAGE_SECONDS, stage_seconds, stage)
        self._report(m.RESPONSE_BYTES, len(reply.body))
        self._report(m.IMAGE_BYTES, stats.image_bytes)
        if stats.pixels:
            self._report(m.IMAGE_MEGAPIXELS, stats.pixels / 1e6)
        self._report_quality(stats)

    def _report_quality(self, stats: RequestStats) -> None:
        quality = stats.quality
        if quality is None:
            return
        self._report(m.CONFIDENCE, quality.confidence)
        self._report(m.ENTROPY, quality.entropy)
        for label, share in zip(self._record.labels, quality.shares, strict=True):
            if share:
                self._report(m.CLASS_COVERAGE, share, label)
        if quality.is_background_only:
            self._report(m.BACKGROUND_ONLY, 1)

    def _report_memory(self) -> None:
        self._report(m.MEMORY_BYTES, self._process.memory_info().rss)
        if self._device.startswith("cuda"):
            import torch

            index = self._device.partition(":")[2] or "0"
            self._report(m.GPU_MEMORY_BYTES, torch.cuda.memory_reserved(int(index)), index)

    def _report(self, metric: m.Metric, value: float, *labels: str) -> None:
        sink = self._sinks.get(metric.name)
        if sink is not None and math.isfinite(value):
            sink.add_or_update(value, [*self._model, *map(_label, labels)])


def _sinks(server: MetricsCache | None) -> dict[str, Sink]:
    """By name, the server's metrics that are declared here with the same labels."""
    kinds = () if server is None else server.cache.values()
    named = [item for of_a_kind in kinds for item in of_a_kind.items()]
    return {name: sink for name, sink in named if tuple(sink.dimension_names) == _LABELS.get(name)}


def _label(text: str) -> str:
    return text.translate(_NOT_IN_A_LABEL) or "none"
