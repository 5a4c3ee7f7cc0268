"""RGB pixels to the class of every pixel, whatever computes the network."""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from math import ceil

import numpy as np
from numpy.typing import NDArray

from ...schema.request import Mode, Tta
from ..errors import OutOfMemoryError, is_out_of_memory
from ..record import ModelRecord
from ..settings import Settings
from ..telemetry import Timings
from .arrays import Array, namespace
from .labels import EVERY_PIXEL, LabelRule, SegmentedImage, choose_labels
from .logits import average_scales, blend_tiles
from .plan import Plan, TiledScale, costs, plan_inference

# The size of a reduced copy of an image, as a multiple of the network's input size. Resizing twice
# is not the same as resizing once. With 1.5, 0.3 % of the pixels of photographs of 1,800 pixels get
# another class; with 1.0, 1.1 % do.
_REDUCED = 1.5


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
                inputs = self._inputs(concatenate(tiles))
            with timings.stage("inference"):
                logits.append(self.infer(inputs))
        with timings.stage("inference"):
            return blend_tiles(concatenate(logits), tiled)

    def preprocess(self, image_rgb: NDArray[np.uint8]) -> Array:
        """uint8 (H, W, 3), RGB -> the network's input, at the resize rule's size."""
        return self._inputs(self._resized(image_rgb, self.resize.size_for(*image_rgb.shape[:2])))
