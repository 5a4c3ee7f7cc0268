"""The four pictures that show how an image was segmented, small enough for a page."""

import base64
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.Image import Resampling

from ...runtime.encode.mask import encode_jpeg
from ...runtime.encode.overlay import draw_overlay
from ...runtime.record import ModelRecord
from ..data import IGNORED
from .measure import SegmentedImage
from .metrics import ImageScore, count_pixels

_LONGER_SIDE_PX = 400
_PALE, _WRONG_RGB, _WRONG_OPACITY = 0.4, (225, 20, 60), 0.75


@dataclass(frozen=True)
class ImageView:
    """One image of the page; the pictures are `data:` URIs of JPEGs."""

    score: ImageScore
    class_iou: dict[str, float]
    picture: str
    truth: str
    prediction: str
    difference: str


def view_image(score: ImageScore, image: SegmentedImage, record: ModelRecord) -> ImageView:
    """Draws one image with the record's colours; pixels to ignore are dark in `truth` and white in
    `difference`.
    """
    iou = count_pixels(image.truth, image.predicted, len(record.classes)).iou
    small = reduced(image)
    return ImageView(
        score=score,
        class_iou={
            label: float(value)
            for label, value in zip(record.labels, iou, strict=True)
            if not np.isnan(value)
        },
        picture=_data_uri(Image.fromarray(small.image_rgb)),
        truth=_data_uri(draw_overlay(small.image_rgb, small.truth, record.classes, shown=())),
        prediction=_data_uri(
            draw_overlay(small.image_rgb, small.predicted, record.classes, shown=())
        ),
        difference=_data_uri(Image.fromarray(draw_difference(small))),
    )


def reduced(image: SegmentedImage) -> SegmentedImage:
    """The same with a longer side of at most 400 pixels; labels are picked, never mixed."""
    return SegmentedImage(
        _thumbnail(image.image_rgb, Resampling.BICUBIC),
        _thumbnail(image.truth, Resampling.NEAREST),
        _thumbnail(image.predicted, Resampling.NEAREST),
    )


def _thumbnail(pixels: NDArray[np.uint8], resampling: Resampling) -> NDArray[np.uint8]:
    picture = Image.fromarray(pixels)
    picture.thumbnail((_LONGER_SIDE_PX, _LONGER_SIDE_PX), resampling)
    return np.array(picture)


def draw_difference(image: SegmentedImage) -> NDArray[np.uint8]:
    """uint8 (H, W, 3), RGB: the picture in pale grey, wrong pixels in red, pixels to ignore in
    white.
    """
    grey = np.array(Image.fromarray(image.image_rgb).convert("L"))[..., None].repeat(3, axis=2)
    drawn = 255 - _PALE * (255 - grey)
    wrong = (image.truth != image.predicted) & (image.truth != IGNORED)
    drawn[wrong] = (1 - _WRONG_OPACITY) * grey[wrong] + _WRONG_OPACITY * np.array(_WRONG_RGB)
    drawn[image.truth == IGNORED] = 255
    return drawn.astype(np.uint8)


def _data_uri(picture: Image.Image) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(encode_jpeg(picture)).decode('ascii')}"
