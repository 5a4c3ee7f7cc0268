"""Failover from a GPU to the CPU: if the GPU fails, the CPU computes all further requests.

After most GPU errors, a process can no longer use the GPU. So this process does not retry; the next
worker uses the GPU again. Until then, results stay correct but take longer.
"""

import logging
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..acceleration.verified import is_device_failure, reason
from ..errors import OutOfMemoryError
from ..network.weights import load_network
from ..record import read_record
from ..settings import Settings
from ..telemetry import Timings
from .base import AnySegmenter
from .labels import SegmentedImage
from .segmenter import Segmenter

logger = logging.getLogger(__name__)


class FailoverSegmenter(AnySegmenter):
    """A `Segmenter` on a GPU that switches to the CPU if the GPU fails. Safe to use from several
    threads.

    Args:
        segmenter: the segmenter on the GPU.
        on_cpu: loads the same model on the CPU; called once, when the GPU fails.
    """

    device: torch.device

    def __init__(self, segmenter: Segmenter, on_cpu: Callable[[], Segmenter]) -> None:
        super().__init__(segmenter.record, segmenter.resize)
        self._on_cpu = on_cpu
        self._has_failed = False
        self._lock = Lock()
        self._switch_to(segmenter)

    def _switch_to(self, segmenter: Segmenter) -> None:
        self._segmenter = segmenter
        self.device, self.precision = segmenter.device, segmenter.precision
        self.backend = segmenter.backend

    def use_threads(self, threads: int) -> None:
        self._segmenter.use_threads(threads)

    def segment(
        self,
        image_rgb: NDArray[np.uint8],
        timings: Timings | None = None,
        **options: Any,  # noqa: ANN401
    ) -> SegmentedImage:
        """As `Segmenter.segment`. If the GPU fails on an image, the CPU computes that image."""
        timings = timings or Timings()
        try:
            return self._segmenter.segment(image_rgb, timings, **options)
        except RuntimeError as error:
            if not is_device_failure(error):
                raise
            # Not the error itself: its traceback would keep the GPU's tensors alive.
            why = reason(error)
        return self._instead(why).segment(image_rgb, timings, **options)

    def _instead(self, why: str) -> Segmenter:
        """The segmenter on the CPU. If several threads see the GPU fail, the first one loads it."""
        with self._lock:
            if not self._has_failed:
                on_cpu = self._on_cpu()
                _warn(self._segmenter.device, why)
                self._switch_to(on_cpu)
                self._has_failed = True
            return self._segmenter


def load_with_failover(
    folder: Path, *, device: torch.device, settings: Settings
) -> Segmenter | FailoverSegmenter:
    """Loads the segmenter of a model folder. The folder is not needed afterwards.

    For a GPU, a copy of the network stays in the host's memory for failover to the CPU. A GPU that
    cannot segment a first image is not used at all.

    Raises:
        ModelError: the record or the weights are missing or broken, or do not match.
    """
    if device.type == "cpu":
        return Segmenter.load(folder, settings=settings)
    record = read_record(folder)
    network = load_network(record, folder)

    def on(device: torch.device) -> Segmenter:
        return Segmenter.of(deepcopy(network), record, device=device, settings=settings)

    on_cpu = partial(on, torch.device("cpu"))
    size_px = record.input.resize.size_px
    try:
        segmenter = on(device)
        segmenter.segment(np.full((size_px, size_px, 3), 128, dtype=np.uint8))
        return FailoverSegmenter(segmenter, on_cpu)
    except (RuntimeError, AssertionError, OutOfMemoryError) as error:
        # PyTorch without CUDA raises AssertionError.
        why = reason(error)
    with suppress(RuntimeError):
        torch.cuda.empty_cache()  # other processes on this GPU may need the memory
    _warn(device, why)
    return on_cpu()


def _warn(device: torch.device, why: str) -> None:
    logger.warning(
        "%s failed: the CPU computes from now on, which is slower, until the worker restarts: %s",
        device,
        why,
    )
