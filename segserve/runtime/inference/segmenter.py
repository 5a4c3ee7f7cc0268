"""Converts RGB pixels to the class of every pixel at the image's own size. Calls do not affect each
other.
"""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from math import ceil
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name the field uses

from ...schema.request import Mode, Tta
from ..acceleration.cpu import cpu_network
from ..acceleration.cuda import CudaRecorder, CudaStreams, GraphedNetwork, uploaded
from ..acceleration.gpu_fusion import gpu_fused_network
from ..acceleration.int8 import quantized_network
from ..acceleration.openvino_network import OpenVinoNetwork
from ..acceleration.verified import OptimizationError, is_out_of_memory
from ..errors import OutOfMemoryError
from ..network.weights import SegmentationNetwork, load_network
from ..record import ModelRecord, ResizeRule, read_record
from ..settings import Settings, check_precision
from ..telemetry.request_stats import Timings
from .blend import average_scales, blend_tiles
from .labels import EVERY_PIXEL, LabelRule, SegmentedImage, choose_labels
from .plan import Plan, TiledScale, costs, plan_inference

logger = logging.getLogger(__name__)

# The number of tiles per batch. One tile does not use a whole GPU. A CPU is no faster with several.
_TILES_AT_ONCE = {"cpu": 1, "cuda": 8}


# The size of a reduced copy of an image, as a multiple of the network's input size. Resizing twice
# is not the same as resizing once. With 1.5, 0.3 % of the pixels of photographs of 1,800 pixels get
# another class; with 1.0, 1.1 % do.
_REDUCED = 1.5


class Segmenter:
    """A network with its weights on a device.

    `precision` is the number type of its multiplications: bfloat16, float32 or int8.
    """

    def __init__(
        self, network: nn.Module, record: ModelRecord, *, device: torch.device, settings: Settings
    ) -> None:
        self.record = record
        self.device = device
        self.dtype = _dtype(settings, device)
        self.precision = "int8" if settings.precision == "int8" else _name_of(self.dtype)
        self._resize: ResizeRule = settings.resize or record.input.resize
        self._network: Callable[[Tensor], Tensor] = (
            _in_dtype(network, self.dtype).to(device).to(memory_format=torch.channels_last).eval()
        )
        self._mean = torch.tensor(record.input.mean, device=device).view(1, 3, 1, 1) * 255
        self._std = torch.tensor(record.input.std, device=device).view(1, 3, 1, 1) * 255
        self._streams = _streams(device, settings)

    @property
    def backend(self) -> str:
        """What computes the network: `OpenVINO` or `PyTorch`."""
        return "OpenVINO" if isinstance(self._network, OpenVinoNetwork) else "PyTorch"

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
        if settings.precision == "int8":
            try:
                return cls(
                    quantized_network(network, device), record, device=device, settings=settings
                )
            except OptimizationError as error:
                settings = settings.model_copy(update={"precision": "auto"})
                instead = _name_of(_dtype(settings, device))
                logger.warning("the network computes in %s instead of int8: %s", instead, error)
        if not settings.fuse or device.type not in ("cpu", "cuda"):
            return cls(network, record, device=device, settings=settings)
        if device.type == "cpu":
            return cls(
                cpu_network(network, _dtype(settings, device)),
                record,
                device=device,
                settings=settings,
            )
        fused = gpu_fused_network(network, _dtype(settings, device), device)
        segmenter = cls(fused, record, device=device, settings=settings)
        segmenter._network = _with_graphs(segmenter._network, device, settings)
        return segmenter

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
        """Segments one image.

        Args:
            image_rgb: uint8 (H, W, 3), RGB, of any size from 1 x 1.
            timings: receives the seconds of the stages `preprocess` and `inference`, and the cost
                if it is not 1.
            mode: `whole`: at the resize rule's size; `slide`: in tiles, at the image's own
                resolution.
            tta: `flip` averages over mirror images, `multiscale` also over several scales.
            rule: applied to the class of each pixel.
            size_hw: (height, width) of the image if `image_rgb` is a reduced copy of it, see
                `needed_hw`.

        Raises:
            OutOfMemoryError: the device or the host has too little memory for this image.
        """
        timings = timings or Timings()
        height_px, width_px = size_hw or image_rgb.shape[:2]
        plan = self.plan(height_px, width_px, mode=mode, tta=tta)
        if plan.cost != 1:
            timings.descriptions["inference"] = f"{plan.cost:.1f} passes"
        try:
            with torch.inference_mode(), self._own_stream():
                logits = self.logits(image_rgb, plan, timings)
                with timings.stage("inference"):
                    return choose_labels(
                        logits, height_px, width_px, rule, temperature=self.record.temperature
                    )
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            raise OutOfMemoryError(
                f"no memory left for an image of {width_px} x {height_px} pixels; send it smaller, "
                "or try again later"
            ) from error

    def _own_stream(self) -> AbstractContextManager[None]:
        return nullcontext() if self._streams is None else self._streams.own()

    def plan(
        self, height_px: int, width_px: int, *, mode: Mode = "whole", tta: Tta = "none"
    ) -> Plan:
        """The plan by which `segment` computes an image of this size."""
        return plan_inference(self._resize, height_px, width_px, mode=mode, tta=tta)

    def needed_hw(
        self, height_px: int, width_px: int, *, mode: Mode = "whole", tta: Tta = "none"
    ) -> tuple[int, int]:
        """The smallest size of a reduced copy that serves as well as the image. It is never larger
        than the image.
        """
        scales = self.plan(height_px, width_px, mode=mode, tta=tta).scales
        rows_px, columns_px = (max(tiled.size_hw[side] for tiled in scales) for side in (0, 1))
        return min(height_px, ceil(_REDUCED * rows_px)), min(width_px, ceil(_REDUCED * columns_px))

    def costs(self, height_px: int, width_px: int) -> dict[tuple[Mode, Tta], float]:
        """The cost of every mode and TTA for an image of this size, in forward passes of the whole
        image.
        """
        return costs(self._resize, height_px, width_px)

    def logits(self, image_rgb: NDArray[np.uint8], plan: Plan, timings: Timings) -> Tensor:
        """uint8 (H, W, 3), RGB -> logits, float32 (classes, h, w), on the grid of the plan's finest
        scale.

        The plan's cost limits the memory: the logits of all its forward passes exist at once, but
        none at the image's size.
        """
        scales = []
        for tiled in plan.scales:
            with timings.stage("preprocess"):
                pixels = self._pixels(image_rgb, tiled.size_hw)
            scales.append(self._scale_logits(pixels, tiled, timings))
            if plan.mirrored:
                scales.append(self._scale_logits(pixels.flip(-1), tiled, timings).flip(-1))
        with timings.stage("inference"):
            return average_scales(scales)

    def _scale_logits(self, pixels: Tensor, tiled: TiledScale, timings: Timings) -> Tensor:
        """uint8 (1, 3, H, W) at one scale -> logits, float32 (classes, h, w)."""
        logits, origins_yx, (height_px, width_px) = [], iter(tiled.origins_yx), tiled.tile_hw
        while batch := list(islice(origins_yx, _TILES_AT_ONCE.get(self.device.type, 1))):
            with timings.stage("preprocess"):
                tiles = [
                    pixels[..., top : top + height_px, left : left + width_px]
                    for top, left in batch
                ]
                inputs = self._normalized(torch.cat(tiles))
            with timings.stage("inference"):
                logits.append(self.infer(inputs))
        with timings.stage("inference"):
            return blend_tiles(torch.cat(logits), tiled)

    def preprocess(self, image_rgb: NDArray[np.uint8]) -> Tensor:
        """uint8 (H, W, 3), RGB -> normalised (1, 3, h, w) on the device, at the resize rule's
        size.
        """
        return self._normalized(
            self._pixels(image_rgb, self._resize.size_for(*image_rgb.shape[:2]))
        )

    def _pixels(self, image_rgb: NDArray[np.uint8], size_hw: tuple[int, int]) -> Tensor:
        """uint8 (H, W, 3) -> uint8 (1, 3, h, w), resized and on the device.

        The CPU does the resize: CUDA's antialiased resize supports neither uint8 nor very large
        images.
        """
        pixels = torch.from_numpy(image_rgb).permute(2, 0, 1).unsqueeze(0)
        height_px, width_px = image_rgb.shape[:2]
        if (
            size_hw[0] < height_px and size_hw[1] > width_px
        ):  # a thin column: shrink the rows first to save memory
            pixels = _resized(pixels, (size_hw[0], width_px))
        if size_hw != pixels.shape[2:]:
            pixels = _resized(pixels, size_hw)
        return pixels.to(self.device) if self._streams is None else uploaded(pixels, self.device)

    def _normalized(self, pixels: Tensor) -> Tensor:
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
    if settings.precision == "auto":
        return torch.bfloat16 if has_bf16(device) else torch.float32
    return torch.bfloat16 if settings.precision == "bf16" else torch.float32


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def has_bf16(device: torch.device) -> bool:
    """Whether the device computes bf16 natively. Otherwise bf16 is emulated, and slower than
    float32.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _in_dtype(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Converts convolutions and linear layers to `dtype`. Norms stay float32: their variances need
    the precision.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.to(dtype)
    return network
