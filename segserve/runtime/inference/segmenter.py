"""Segments with PyTorch, on a CPU or a GPU. On a CPU, OpenVINO computes the network. A GPU that
fails is replaced by the CPU.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from copy import deepcopy
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name the field uses

from ..acceleration.cuda import CudaStreams, GraphedNetwork, gpu_fused_network
from ..acceleration.openvino_model import uses_int8
from ..acceleration.verified import (
    CPU,
    OpenVinoNetwork,
    check_shape,
    cpu_network,
    is_device_failure,
    reason,
)
from ..errors import OutOfMemoryError, is_out_of_memory
from ..network import SegmentationNetwork, load_network
from ..record import ModelRecord, read_record
from ..settings import Settings, check_precision
from ..telemetry import Timings
from .base import BaseSegmenter, least_side_of
from .labels import SegmentedImage

logger = logging.getLogger(__name__)

# The number of tiles per batch. One tile does not use a whole GPU. A CPU is no faster with several.
_TILES_AT_ONCE = {"cpu": 1, "cuda": 8}


class Segmenter(BaseSegmenter):
    """A network of PyTorch on a device."""

    device: torch.device

    def __init__(
        self, network: nn.Module, record: ModelRecord, *, device: torch.device, settings: Settings
    ) -> None:
        super().__init__(record, settings)
        self.device = device
        self.dtype = _dtype(settings, device)
        self.precision, self.backend = str(self.dtype).removeprefix("torch."), "PyTorch"
        if isinstance(network, OpenVinoNetwork):
            self.precision, self.backend = network.precision, "OpenVINO"
        self._tiles_at_once = _TILES_AT_ONCE.get(device.type, 1)
        self._network: Callable[[Tensor], Tensor] = (
            _in_dtype(network, self.dtype).to(device).to(memory_format=torch.channels_last).eval()
        )
        self._mean = torch.tensor(record.input.mean, device=device).view(1, 3, 1, 1) * 255
        self._std = torch.tensor(record.input.std, device=device).view(1, 3, 1, 1) * 255
        self._streams: CudaStreams | None = None
        if device.type == "cuda":
            if settings.acceleration.cuda_streams:
                self._streams = CudaStreams(device)
            if settings.acceleration.cuda_graphs:
                self._network = GraphedNetwork(self._network)

    @classmethod
    def load(
        cls, folder: Path, *, device: torch.device = CPU, settings: Settings | None = None
    ) -> Self:
        """Loads the segmenter of a model folder. Raises as `load_network` and `of`."""
        record = read_record(folder)
        return cls.of(load_network(record, folder), record, device=device, settings=settings)

    @classmethod
    def of(
        cls,
        network: SegmentationNetwork,
        record: ModelRecord,
        *,
        device: torch.device = CPU,
        settings: Settings | None = None,
    ) -> Self:
        """Builds the segmenter of a network, float32 on the CPU in evaluation mode, optimised as
        the settings require. Raises ModelError if the model does not support them, or the network
        fails at a size that the resize rule gives.
        """
        settings = settings or Settings()
        check_precision(settings, record)
        ranges = network.ranges if uses_int8(settings, record, device.type) else None
        dtype = _dtype(settings, device)
        optimized: nn.Module = network
        if settings.fuse and device.type == "cpu":
            optimized = cpu_network(network, dtype, ranges)
        elif settings.fuse and device.type == "cuda":
            optimized = gpu_fused_network(network, dtype, device)
        with torch.inference_mode():  # before the segmenter converts the network
            least_side_px = least_side_of(
                record,
                settings.resize or record.input.resize,
                lambda *size_hw: check_shape(network, optimized, (1, 3, *size_hw)),
            )
        segmenter = cls(optimized, record, device=device, settings=settings)
        segmenter._least_side_px = least_side_px
        return segmenter

    def use_threads(self, threads: int) -> None:
        torch.set_num_threads(threads)  # PyTorch stores this number per thread

    @contextmanager
    def _computing(self) -> Iterator[None]:
        stream = nullcontext() if self._streams is None else self._streams.own()
        try:
            with torch.inference_mode(), stream:
                yield
        except RuntimeError as error:
            if self.device.type == "cuda" and is_out_of_memory(error):
                torch.cuda.empty_cache()
            raise

    def _resized(self, image_rgb: NDArray[np.uint8], size_hw: tuple[int, int]) -> Tensor:
        """The CPU does the resize: CUDA's antialiased resize supports neither uint8 nor very large
        images.
        """
        pixels = torch.from_numpy(image_rgb).permute(2, 0, 1).unsqueeze(0)
        height_px, width_px = image_rgb.shape[:2]
        if size_hw[0] < height_px and size_hw[1] > width_px:
            # A thin column: shrinking the rows first saves memory.
            pixels = _resized(pixels, (size_hw[0], width_px))
        if size_hw != pixels.shape[2:]:
            pixels = _resized(pixels, size_hw)
        if self._streams is None:
            return pixels.to(self.device)
        return pixels.pin_memory().to(self.device, non_blocking=True)

    def _inputs(self, pixels: Tensor) -> Tensor:
        """Normalised, in the dtype and the memory format of the network."""
        normalized = (pixels.float() - self._mean) / self._std
        return normalized.to(self.dtype).contiguous(memory_format=torch.channels_last)

    def infer(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self._network(inputs)
        return logits.float().contiguous()


def _resized(pixels: Tensor, size_hw: tuple[int, int]) -> Tensor:
    return F.interpolate(pixels, size=size_hw, mode="bilinear", align_corners=False, antialias=True)


def _dtype(settings: Settings, device: torch.device) -> torch.dtype:
    """The dtype of the network's input."""
    if settings.precision in ("auto", "int8"):
        return torch.bfloat16 if has_bf16(device) else torch.float32
    return torch.bfloat16 if settings.precision == "bf16" else torch.float32


def has_bf16(device: torch.device) -> bool:
    """Whether the device computes bf16 natively. Emulated, it is slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _in_dtype(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Converts convolutions and linear layers. The variances of norms need float32."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.to(dtype)
    return network


class FailoverSegmenter:
    """A `Segmenter` on a GPU. If the GPU fails, the CPU computes that image and all further ones.
    Thread-safe.

    After most GPU errors, a process can no longer use the GPU. So this process does not retry; the
    next worker uses the GPU again. All but `segment` is that of the segmenter that computes now.

    Args:
        on_cpu: loads the same model on the CPU; called once, when the GPU fails.
    """

    def __init__(self, segmenter: Segmenter, on_cpu: Callable[[], Segmenter]) -> None:
        self._segmenter = segmenter
        self._on_cpu = on_cpu
        self._lock = Lock()

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._segmenter, name)

    def segment(
        self,
        image_rgb: NDArray[np.uint8],
        timings: Timings | None = None,
        **options: Any,  # noqa: ANN401
    ) -> SegmentedImage:
        """As `Segmenter.segment`."""
        timings, used = timings or Timings(), self._segmenter
        try:
            return used.segment(image_rgb, timings, **options)
        except RuntimeError as error:
            if not is_device_failure(error):
                raise
            # Not the error itself: its traceback would keep the GPU's tensors alive.
            why = reason(error)
        with self._lock:
            if self._segmenter is used:  # several threads may see the GPU fail
                self._segmenter = self._on_cpu()
                _warn(used.device, why)
        return self._segmenter.segment(image_rgb, timings, **options)


def load_with_failover(folder: Path, *, device: torch.device, settings: Settings) -> Segmenter:
    """Loads the segmenter of a model folder; for a GPU, as a `FailoverSegmenter`. The folder is not
    needed afterwards.

    For a GPU, a copy of the network stays in the host's memory for failover to the CPU. A GPU that
    cannot segment a first image is not used at all. Raises as `Segmenter.load`.
    """
    record = read_record(folder)
    network = load_network(record, folder)
    on_cpu = partial(Segmenter.of, network, record, device=CPU, settings=settings)
    if device.type == "cpu":
        return on_cpu()
    size_px = record.input.resize.size_px
    try:
        segmenter = Segmenter.of(deepcopy(network), record, device=device, settings=settings)
        segmenter.segment(np.full((size_px, size_px, 3), 128, dtype=np.uint8))
        return cast(Segmenter, FailoverSegmenter(segmenter, on_cpu))
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
