"""Segments with PyTorch, on a CPU or a GPU. On a CPU, OpenVINO computes the network."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name the field uses

from ..acceleration.cpu import OpenVinoNetwork, cpu_network, int8_network
from ..acceleration.cuda import (
    CudaRecorder,
    CudaStreams,
    GraphedNetwork,
    gpu_fused_network,
    uploaded,
)
from ..acceleration.int8 import uses_int8
from ..acceleration.verified import OptimizationError
from ..network.weights import SegmentationNetwork, load_network
from ..record import ModelRecord, read_record
from ..settings import Settings, check_precision
from .base import BaseSegmenter

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
        self._streams = _streams(device, settings)

    @classmethod
    def load(
        cls, folder: Path, *, device: torch.device | None = None, settings: Settings | None = None
    ) -> Self:
        """Loads the segmenter of a model folder, by default on the CPU.

        Raises:
            ModelError: the record or the weights are missing or broken, or do not match, or the
                model does not support the settings.
        """
        record = read_record(folder)
        return cls.of(load_network(record, folder), record, device=device, settings=settings)

    @classmethod
    def of(
        cls,
        network: SegmentationNetwork,
        record: ModelRecord,
        *,
        device: torch.device | None = None,
        settings: Settings | None = None,
    ) -> Self:
        """Builds the segmenter of a network, float32 on the CPU. Optimises the network as the
        settings require.

        Raises:
            ModelError: the model does not support the settings.
        """
        device, settings = device or torch.device("cpu"), settings or Settings()
        check_precision(settings, record)
        if network.ranges and uses_int8(settings, record, device.type):
            try:
                quantized = int8_network(network, _dtype(settings, device))
                return cls(quantized, record, device=device, settings=settings)
            except OptimizationError as error:
                logger.warning("the network does not compute in int8: %s", error)
        if not settings.fuse or device.type not in ("cpu", "cuda"):
            return cls(network, record, device=device, settings=settings)
        if device.type == "cpu":
            compiled = cpu_network(network, _dtype(settings, device))
            return cls(compiled, record, device=device, settings=settings)
        fused = gpu_fused_network(network, _dtype(settings, device), device)
        segmenter = cls(fused, record, device=device, settings=settings)
        segmenter._network = _with_graphs(segmenter._network, device, settings)
        return segmenter

    def use_threads(self, threads: int) -> None:
        torch.set_num_threads(threads)  # PyTorch stores this number per thread

    @contextmanager
    def _computing(self) -> Iterator[None]:
        with torch.inference_mode():
            if self._streams is None:
                yield
            else:
                with self._streams.own():
                    yield

    def _free_memory(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _resized(self, image_rgb: NDArray[np.uint8], size_hw: tuple[int, int]) -> Tensor:
        """uint8 (H, W, 3) -> uint8 (1, 3, h, w), resized and on the device.

        The CPU does the resize: CUDA's antialiased resize supports neither uint8 nor very large
        images.
        """
        pixels = torch.from_numpy(image_rgb).permute(2, 0, 1).unsqueeze(0)
        height_px, width_px = image_rgb.shape[:2]
        if size_hw[0] < height_px and size_hw[1] > width_px:
            # A thin column: shrinking the rows first saves memory.
            pixels = _resized(pixels, (size_hw[0], width_px))
        if size_hw != pixels.shape[2:]:
            pixels = _resized(pixels, size_hw)
        return pixels.to(self.device) if self._streams is None else uploaded(pixels, self.device)

    def _inputs(self, pixels: Tensor) -> Tensor:
        """uint8 (N, 3, h, w) -> normalised, in the dtype and the memory format of the network."""
        normalized = (pixels.float() - self._mean) / self._std
        return normalized.to(self.dtype).contiguous(memory_format=torch.channels_last)

    def infer(self, inputs: Tensor) -> Tensor:
        """Normalised (N, 3, h, w) -> logits, float32 (N, classes, h / stride, w / stride),
        contiguous.
        """
        logits: Tensor = self._network(inputs)
        return logits.float().contiguous()


def _streams(device: torch.device, settings: Settings) -> CudaStreams | None:
    is_on = device.type == "cuda" and settings.acceleration.cuda_streams
    return CudaStreams(device) if is_on else None


def _with_graphs(
    network: Callable[[Tensor], Tensor], device: torch.device, settings: Settings
) -> Callable[[Tensor], Tensor]:
    if not settings.acceleration.cuda_graphs:
        return network
    return GraphedNetwork(network, CudaRecorder(device))


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
