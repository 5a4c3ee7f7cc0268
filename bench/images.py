"""The pictures that are sent: photographs which scikit-image ships, as the JPEG files that users send."""

import io
from pathlib import Path

from PIL import Image

from segserve.demo import sample_photograph

NAMES = ("chelsea.png", "astronaut.png", "coffee.png", "rocket.jpg", "motorcycle_left.png")


def photographs() -> list[bytes]:
    return [_as_jpeg(sample_photograph(name)) for name in NAMES]


def _as_jpeg(path: Path) -> bytes:
    buffer = io.BytesIO()
    with Image.open(path) as image:
        image.convert("RGB").save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
