"""The pictures that are sent: photographs which scikit-image ships, as the JPEG files that users send."""

import io
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

NAMES = ("chelsea.png", "astronaut.png", "coffee.png", "rocket.jpg", "motorcycle_left.png")


def photographs() -> list[bytes]:
    data = Path(find_spec("skimage").origin).parent / "data"
    return [_as_jpeg(data / name) for name in NAMES]


def _as_jpeg(path: Path) -> bytes:
    buffer = io.BytesIO()
    with Image.open(path) as image:
        image.convert("RGB").save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
