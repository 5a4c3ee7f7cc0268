"""One row of the table of the classes that an image holds."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ClassShare:
    """One class that an image holds.

    Attributes:
        color: RGB, 0..255 each.
        pixels: how many pixels have this class.
        fraction: their share of the image, 0..1.
        box_xyxy: x_min, y_min, x_max, y_max in pixels, maxima exclusive.
        confidence: mean of the pixels' top probability, 0..1.
    """

    id: int
    label: str
    color: tuple[int, int, int]
    pixels: int
    fraction: float
    box_xyxy: tuple[int, int, int, int]
    confidence: float
