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

import numpy as np
import torch
from numpy.typing import NDArray

from ...schema.request import Mode, Tta
from ..acceleration.verified import is_device_failure, reason
from ..errors import OutOfMemoryError
from ..network.weights import load_network
from ..record import ModelRecord, read_record
from ..settings import Settings
from ..telemetry.request_stats import Timings
from .labels import EVERY_PIXEL, LabelRule, SegmentedImage
from .plan import Plan
from .segmenter import Segmenter

logger = logging.getLogger(__name__)


class FailoverSegmenter:
    """A `Segmenter` on a GPU that switches to the CPU if the GPU fails. Safe to use from several
    threads.

    Args:
        segmenter: the segmenter on the GPU.
        on_cpu: loads the same model on the CPU; called once, when the GPU fails.
    """

    def __init__(self, segmenter: Segmenter, on_cpu: Callable[[], Segmenter]) -> None:
        self._segmenter = segmenter
        self._on_cpu = on_cpu
        self._has_failed = False
        self._lock = Lock()

    @property
    def record(self) -> ModelRecord:
        return self._segmenter.record

    @property
    def device(self) -> torch.device:
        """The device in use."""
        return self._segmenter.device

    @property
    def precision(self) -> str:
        return self._segmenter.precision

    @property
    def backend(self) -> str:
        return self._segmenter.backend

    def use_threads(self, threads: int) -> None:
        self._segmenter.use_threads(threads)

    def plan(
        self, height_px: int, width_px: int, *, mode: Mode = "whole", tta: Tta = "none"
    ) -> Plan:
        return self._segmenter.plan(height_px, width_px, mode=mode, tta=tta)

    def needed_hw(
        self, height_px: int, width_px: int, *, mode: Mode = "whole", tta: Tta = "none"
    ) -> tuple[int, int]:
        return self._segmenter.needed_hw(height_px, width_px, mode=mode, tta=tta)

    def costs(self, height_px: int, width_px: int) -> dict[tuple[Mode, Tta], float]:
        return self._segmenter.costs(height_px, width_px)

    def segment(
        self,
        image_rgb: NDArray[np.uint8],
        timings: Timings | None = None,
        *,
        mode: Mode = "whole",
        tta: Tta = "none",
        rule: LabelRule = EVERY_PIXEL,
        size_hw: tuple[int, int] | None = None,
    ) -> SegmentedImage:
        """As `Segmenter.segment`. If the GPU fails on an image, the CPU computes that image."""
        timings = timings or Timings()
        try:
            return self._segmenter.segment(
                image_rgb, timings, mode=mode, tta=tta, rule=rule, size_hw=size_hw
            )
        except RuntimeError as error:
            if not is_device_failure(error):
                raise
            why = reason(
                error
            )  # not the error itself: its traceback would keep the GPU's tensors alive
        return self._instead(why).segment(
            image_rgb, timings, mode=mode, tta=tta, rule=rule, size_hw=size_hw
        )

    def _instead(self, why: str) -> Segmenter:
        """The segmenter on the CPU. If several threads see the GPU fail, the first one loads it."""
        with self._lock:
            if not self._has_failed:
                on_cpu = self._on_cpu()
                _warn(self._segmenter.device, why)
                self._segmenter, self._has_failed = on_cpu, True
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
    try:
        return FailoverSegmenter(_tried_out(on(device)), on_cpu)
    except (
        RuntimeError,
        AssertionError,
        OutOfMemoryError,
    ) as error:  # PyTorch without CUDA raises AssertionError
        why = reason(error)
    with suppress(RuntimeError):
        torch.cuda.empty_cache()  # other processes on this GPU may need the memory
    _warn(device, why)
    return on_cpu()


def _tried_out(segmenter: Segmenter) -> Segmenter:
    size_px = segmenter.record.input.resize.size_px
    segmenter.segment(np.full((size_px, size_px, 3), 128, dtype=np.uint8))
    return segmenter


def _warn(device: torch.device, why: str) -> None:
    logger.warning(
        "%s failed: the CPU computes from now on, which is slower, until the worker restarts: %s",
        device,
        why,
    )
