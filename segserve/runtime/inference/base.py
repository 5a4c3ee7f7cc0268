"""RGB pixels to the class of every pixel, whatever computes the network."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from math import ceil

import numpy as np
from numpy.typing import NDArray

from ...schema.request import Mode, Tta
from ..errors import ModelError, OutOfMemoryError, is_out_of_memory
from ..record import ModelRecord, ResizeRule
from ..settings import Settings
from ..telemetry import Timings
from .arrays import Array, as_like, namespace
from .labels import EVERY_PIXEL, LabelRule, SegmentedImage, choose_labels
from .logits import average_scales, blend_tiles
from .plan import Plan, TiledScale, costs, plan_inference

# The size of a reduced copy of an image, as a multiple of the network's input size. Resizing twice
# is not the same as resizing once. With 1.5, 0.3 % of the pixels of photographs of 1,800 pixels get
# another class; with 1.0, 1.1 % do.
_REDUCED = 1.5

# The network is checked with a size that is odd unless the rule rounds it, and with a thin one.
_ODD_HW, _THIN_HW = (75, 107), (1, 64)
# Some backbones, such as ConvNeXt, compute nothing below their largest stride.
_LEAST_SIDE_PX = 32


class BaseSegmenter(ABC):
    """A model that segments images, whatever computes its network.

    Attributes:
        resize: the rule for the size of the network's input.
        device: its text is `cpu`, or for example `cuda:0`.
        precision: the number type of the network's multiplications: bfloat16, float32 or int8.
        backend: what computes the network, for example `OpenVINO`.
    """

    device: object
    precision: str
    backend: str
    _tiles_at_once = 1
    _least_side_px = 1

    def __init__(self, record: ModelRecord, settings: Settings) -> None:
        self.record = record
        self.resize = settings.resize or record.input.resize

    @abstractmethod
    def use_threads(self, threads: int) -> None:
        """The number of threads that compute for the calling thread, from now on."""

    @abstractmethod
    def _resized(self, image_rgb: NDArray[np.uint8], size_hw: tuple[int, int]) -> Array:
        """uint8 (H, W, 3) -> uint8 (1, 3, h, w), resized with antialiasing, on the device."""

    @abstractmethod
    def _inputs(self, pixels: Array) -> Array:
        """uint8 (N, 3, h, w) -> the network's input."""

    @abstractmethod
    def infer(self, inputs: Array) -> Array:
        """Inputs of N images -> contiguous logits, float32 (N, classes, h / stride, w / stride)."""

    def _computing(self) -> AbstractContextManager[object]:
        """Encloses the computation of an image."""
        return nullcontext()

    def plan(
        self, height_px: int, width_px: int, *, mode: Mode = "whole", tta: Tta = "none"
    ) -> Plan:
        """The plan by which `segment` computes an image of this size."""
        return plan_inference(self.resize, height_px, width_px, mode=mode, tta=tta)

    def needed_hw(
        self, height_px: int, width_px: int, *, mode: Mode = "whole", tta: Tta = "none"
    ) -> tuple[int, int]:
        """The size, at most the image's, of a reduced copy that serves as well as the image."""
        scales = self.plan(height_px, width_px, mode=mode, tta=tta).scales
        rows_px, columns_px = (max(tiled.size_hw[side] for tiled in scales) for side in (0, 1))
        return min(height_px, ceil(_REDUCED * rows_px)), min(width_px, ceil(_REDUCED * columns_px))

    def costs(self, height_px: int, width_px: int) -> dict[tuple[Mode, Tta], float]:
        """The cost of every mode and TTA, in forward passes of the whole image."""
        return costs(self.resize, height_px, width_px)

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
            with self._computing():
                logits = self.logits(image_rgb, plan, timings)
                with timings.stage("inference"):
                    return choose_labels(
                        logits, height_px, width_px, rule, temperature=self.record.temperature
                    )
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemoryError(
                f"no memory left for an image of {width_px} x {height_px} pixels; send it smaller, "
                "or try again later"
            ) from error

    def logits(self, image_rgb: NDArray[np.uint8], plan: Plan, timings: Timings) -> Array:
        """uint8 (H, W, 3), RGB -> logits, float32 (classes, h, w), on the grid of the plan's finest
        scale.

        The plan's cost limits the memory: the logits of all its forward passes exist at once, but
        none at the image's size.
        """
        scales = []
        for tiled in plan.scales:
            with timings.stage("preprocess"):
                pixels = self._resized(image_rgb, tiled.size_hw)
            flip = namespace(pixels).flip
            scales.append(self._scale_logits(pixels, tiled, timings))
            if plan.mirrored:
                mirrored = self._scale_logits(flip(pixels, (3,)), tiled, timings)
                scales.append(flip(mirrored, (2,)))
        with timings.stage("inference"):
            return average_scales(scales)

    def _scale_logits(self, pixels: Array, tiled: TiledScale, timings: Timings) -> Array:
        """uint8 (1, 3, H, W) at one scale -> logits, float32 (classes, h, w)."""
        logits, origins_yx, (height_px, width_px) = [], iter(tiled.origins_yx), tiled.tile_hw
        concatenate = namespace(pixels).concatenate
        while batch := list(islice(origins_yx, self._tiles_at_once)):
            with timings.stage("preprocess"):
                tiles = [
                    pixels[..., top : top + height_px, left : left + width_px]
                    for top, left in batch
                ]
                inputs = self._inputs(_padded(concatenate(tiles), self._least_side_px))
            with timings.stage("inference"):
                logits.append(self._of_image(self.infer(inputs), tiled.tile_hw))
        with timings.stage("inference"):
            return blend_tiles(concatenate(logits), tiled)

    def _of_image(self, logits: Array, size_hw: tuple[int, int]) -> Array:
        """The logits of an image of this size, without those of its padding."""
        if min(size_hw) >= self._least_side_px:
            return logits
        rows, columns = (ceil(side / self.record.architecture.logits_stride) for side in size_hw)
        return logits[..., :rows, :columns]

    def preprocess(self, image_rgb: NDArray[np.uint8]) -> Array:
        """uint8 (H, W, 3), RGB -> the network's input, at the resize rule's size."""
        return self._inputs(self._resized(image_rgb, self.resize.size_for(*image_rgb.shape[:2])))


def _padded(pixels: Array, least_side_px: int) -> Array:
    """(N, 3, h, w) -> the same with sides of at least this, with copies of the last row and
    column.
    """
    if min(pixels.shape[2:]) >= least_side_px:
        return pixels
    rows, columns = (
        as_like(np.arange(max(side, least_side_px)).clip(0, side - 1), pixels)
        for side in pixels.shape[2:]
    )
    return pixels[..., rows, :][..., columns]


def least_side_of(
    record: ModelRecord, rule: ResizeRule, compute: Callable[[int, int], object]
) -> int:
    """Checks that a network computes every size that the resize rule gives. Returns the least side
    to which thin images are padded for it, in pixels.

    Args:
        compute: the network, of an image of this height and width.

    Raises:
        ModelError: the network fails at a size that is no multiple of 32.
    """
    odd_hw, thin_hw = (
        [ceil(side_px / rule.multiple_of) * rule.multiple_of for side_px in size_hw]
        for size_hw in (_ODD_HW, _THIN_HW)
    )
    try:
        compute(*odd_hw)
    except Exception as error:  # each backend raises others
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"backbone {record.architecture.backbone}: the network fails at an image of "
            f"{odd_hw[1]} x {odd_hw[0]} pixels: set input.resize.multiple_of to 32 ({reason})"
        ) from error
    try:
        compute(*thin_hw)
    except Exception:
        return _LEAST_SIDE_PX
    return 1
