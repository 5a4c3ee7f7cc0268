"""One row of the table of classes in an image."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ClassShare:
    """One class in an image.

    Attributes:
        color: RGB, 0..255 each.
        pixels: the number of pixels of this class.
        fraction: the fraction of the image's pixels, 0..1.
        box_xyxy: the bounding box x_min, y_min, x_max, y_max in pixels; the maxima are exclusive.
        confidence: the mean of the pixels' top probability, 0..1.
    """

    id: int
    label: str
    color: tuple[int, int, int]
    pixels: int
    fraction: float
    box_xyxy: tuple[int, int, int, int]
    confidence: float
