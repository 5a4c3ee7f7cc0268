"""Requests to responses: decode, segment, encode. An error affects only its own request."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..schema.request import MediaType, Options
from .decode.image import Decoded, decode_reduced
from .decode.opening import FORMATS
from .decode.quarantine import Quarantine
from .encode.response import Response, compressed, encode_response, error_response, json_bytes
from .errors import (
    BadOptionError,
    InternalError,
    ModelError,
    OutOfMemoryError,
    SegserveError,
    TooCostlyError,
)
from .inference.base import BaseSegmenter
from .inference.labels import LabelRule, SegmentedImage
from .request import SegmentRequest, class_ids, read_request
from .settings import CONFIG_FILE, Settings
from .telemetry import RequestStats

logger = logging.getLogger(__name__)

# Width to height of most photographs. oneDNN prepares itself for each new shape, in half of the
# network's time.
_COMMON_SHAPES = ((1, 1), (4, 3), (3, 4), (3, 2), (2, 3), (16, 9), (9, 16))


@dataclass(frozen=True)
class Pipeline:
    """What a server needs from a model: a response to every request, and a description of the
    model.

    Without a quarantine, images that crash their decoder are not remembered.
    """

    segmenter: BaseSegmenter
    settings: Settings
    quarantine: Quarantine | None = None

    def __post_init__(self) -> None:
        """Checks the default options against the model.

        Raises:
            ModelError: `classes` of the defaults names a class that the model does not have.
        """
        try:
            class_ids(self.settings.defaults.classes, self.segmenter.record)
        except BadOptionError as error:
            raise ModelError(f"{CONFIG_FILE}: handler.defaults: {error}") from error

    def respond(self, row: Mapping[str, object], headers: Mapping[str, object]) -> Response:
        """The response to a request, errors included. Arguments as in `read_request`."""
        stats = RequestStats()
        try:
            request, image_rgb, segmentation = self.segment(row, headers, stats)
            with stats.timings.stage("encode"):
                body = encode_response(
                    request,
                    image_rgb,
                    segmentation,
                    self.segmenter.record,
                    self.settings.max_response_bytes,
                )
                body, content_encoding = compressed(body, request)
        except Exception as error:
            return error_response(request_error(error), stats)
        return Response(body, request.media_type, stats=stats, content_encoding=content_encoding)

    def segment(
        self, row: Mapping[str, object], headers: Mapping[str, object], stats: RequestStats
    ) -> tuple[SegmentRequest, NDArray[np.uint8], SegmentedImage]:
        """Processes one request up to its segmentation, without encoding a response.

        Returns:
            The request, the decoded image (see `_decode`), and its segmentation.

        Raises:
            Exception: any error; `request_error` converts it.
        """
        timings = stats.timings
        with timings.stage("decode"):
            request = read_request(row, headers, self.settings.defaults)
            stats.read(request)
            kept = class_ids(request.options.classes, self.segmenter.record)
            rule = LabelRule(kept, request.options.threshold, request.with_confidence)
            image_rgb, size_hw = self._decode(request)
        stats.pixels = size_hw[0] * size_hw[1]
        options = request.options
        self._check_cost(options, *size_hw)
        segmentation = self.segmenter.segment(
            image_rgb, timings, mode=options.mode, tta=options.tta, rule=rule, size_hw=size_hw
        )
        stats.quality = segmentation.quality
        return request, image_rgb, segmentation

    def _decode(self, request: SegmentRequest) -> Decoded:
        """Decodes what the network needs; all pixels if the response shows the image."""
        options = request.options
        needed = partial(self.segmenter.needed_hw, mode=options.mode, tta=options.tta)
        decode = self.quarantine.decode if self.quarantine else decode_reduced
        return decode(
            request.image,
            limits=self.settings.pixel_limits,
            alpha=options.alpha,
            needed=None if request.media_type is MediaType.JPEG else needed,
        )

    @property
    def max_cost(self) -> int:
        """The number of forward passes that one request may take."""
        return self.settings.max_cost or self.segmenter.record.max_cost

    def _check_cost(self, options: Options, height_px: int, width_px: int) -> None:
        cost = self.segmenter.plan(height_px, width_px, mode=options.mode, tta=options.tta).cost
        if cost <= self.max_cost:
            return
        fitting = [
            f"mode={mode} tta={tta} ({cost:.1f})"
            for (mode, tta), cost in self.segmenter.costs(height_px, width_px).items()
            if cost <= self.max_cost
        ]
        raise TooCostlyError(
            f"mode={options.mode} tta={options.tta} takes {cost:.1f} passes through the network "
            f"for an image of {width_px} x {height_px} pixels, the limit is {self.max_cost}; these "
            f"fit: {', '.join(fitting)}"
        )

    def describe(self) -> Response:
        """Describes the model, its classes, its options and its limits as JSON. The resize rule and
        the defaults of the options are those in force.
        """
        rule = self.segmenter.record.input.model_copy(update={"resize": self.segmenter.resize})
        record = self.segmenter.record.model_copy(update={"input": rule})
        defaults = self.settings.defaults.model_dump(mode="json")
        options = Options.model_json_schema()["properties"]
        document = {
            **record.model_dump(mode="json", exclude_none=True),
            "options": {
                name: {**schema, "default": defaults[name]} for name, schema in options.items()
            },
            "media_types": list(MediaType),
            "image_formats": FORMATS,
            "limits": {
                "max_image_pixels": self.settings.max_image_pixels,
                "max_decoded_pixels": self.settings.pixel_limits.decoded,
                "max_response_bytes": self.settings.max_response_bytes,
                "max_cost": self.max_cost,
            },
            "device": str(self.segmenter.device),
            "precision": self.segmenter.precision,
        }
        return Response(json_bytes(document), MediaType.JSON)

    def warm_up(self) -> None:
        """Segments images of common shapes, and processes two image files."""
        size_px = self.segmenter.record.input.resize.size_px
        for width, height in _COMMON_SHAPES:
            scale = size_px / max(width, height)
            size_hw = max(1, int(height * scale)), max(1, int(width * scale))
            grey = np.full((*size_hw, 3), 128, dtype=np.uint8)
            self.segmenter.segment(grey)
        for file_format in ("JPEG", "PNG"):
            file = BytesIO()
            Image.fromarray(grey).save(file, file_format)
            self.respond({"body": file.getvalue()}, {})


def request_error(error: Exception) -> SegserveError:
    """The error that a client receives for an exception. Logs faults of the server."""
    if isinstance(error, SegserveError):
        return error
    if isinstance(error, MemoryError):
        logger.error("no memory left for a request", exc_info=error)
        text = "no memory left for this image; send it smaller, or try again later"
        return OutOfMemoryError(text)
    logger.error("a request failed", exc_info=error)
    return InternalError("the server failed at this image; its log says why")
