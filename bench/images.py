"""The benchmarks' images: photographs from scikit-image, as JPEG files like those of users."""

import io
import random
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path

from PIL import Image, ImageOps

from bench.serving.peer import Workload
from segserve.resources import sample_photograph

NAMES = ("chelsea.png", "astronaut.png", "coffee.png", "rocket.jpg", "motorcycle_left.png")

MAX_PIXELS = 2**24

# Sizes from thumbnail to small camera, JPEG qualities from web to camera.
LONGER_SIDES_PX = (320, 500, 640, 1024, 1600)
QUALITIES = (75, 90, 95)


def photographs() -> list[bytes]:
    return [_as_jpeg(_opened(name)) for name in NAMES]


def write_photographs(folder: Path, count: int) -> list[Path]:
    """Writes the photographs as `count` JPEG files, repeatedly."""
    folder.mkdir()
    paths = [folder / f"{number:06}.jpg" for number in range(count)]
    for path, content in zip(paths, cycle(photographs()), strict=False):
        path.write_bytes(content)
    return paths


def mixed_photographs() -> dict[str, bytes]:
    """JPEG files by name: every photograph (landscape, square or portrait) at every size, with
    cycling qualities.
    """
    pictures = {Path(name).stem: _opened(name) for name in (*NAMES, "hubble_deep_field.jpg")}
    pictures["coffee-portrait"] = pictures["coffee"].transpose(Image.Transpose.ROTATE_90)
    qualities = cycle(QUALITIES)
    return {
        f"{name}-{side_px}.jpg": _as_jpeg(
            ImageOps.contain(picture, (side_px, side_px)), next(qualities)
        )
        for side_px in LONGER_SIDES_PX
        for name, picture in pictures.items()
    }


def write_mixed_photographs(folder: Path) -> list[Path]:
    """Writes `mixed_photographs`, and returns their paths in this order."""
    folder.mkdir(parents=True)
    pictures = mixed_photographs()
    for name, content in pictures.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in pictures]


def mixed_workload(
    model: Path, count: int, *, max_s: float, encodings: Sequence[str], scratch: Path
) -> Workload:
    """A workload of `count` photographs at mixed sizes. The files are written to
    `scratch/images`.
    """
    paths = write_mixed_photographs(scratch / "images")
    smallest = f"-{LONGER_SIDES_PX[0]}"
    warm_up = tuple(path for path in paths if path.stem.endswith(smallest))
    random.Random(0).shuffle(paths)  # noqa: S311 - a reproducible order
    return Workload(
        model, tuple(islice(cycle(paths), count)), warm_up, max_s, tuple(encodings), scratch
    )


def _opened(name: str) -> Image.Image:
    with Image.open(sample_photograph(name)) as image:
        return image.convert("RGB")


def _as_jpeg(image: Image.Image, quality: int = 90) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
