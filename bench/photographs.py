"""Counts a model's false classes: `python -m bench.photographs --data DATA [--picture FILE]`.

An image counts if more than 5 % of its pixels have one class that does not occur in it, with a
confidence of at least 0.5. `--picture` draws some photographs with their predicted classes.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from PIL import Image

from segserve.fetch import model_named
from segserve.resources import sample_photograph
from segserve.runtime.decode.image import decode_image
from segserve.runtime.encode.overlay import draw_overlay
from segserve.runtime.inference.labels import LabelRule, SegmentedImage
from segserve.runtime.inference.segmenter import Segmenter
from segserve.runtime.record import BACKGROUND
from segserve.training.data import IGNORED, open_data
from segserve.training.data.files import tiled

LEAST_SHARE, LEAST_CONFIDENCE = 0.05, 0.5

# The PASCAL VOC classes in each photograph, labelled by eye.
PHOTOGRAPHS: dict[str, tuple[str, ...]] = {
    "astronaut.png": ("person",),
    "camera.png": ("person",),
    "chelsea.png": ("cat",),
    "coffee.png": ("diningtable",),
    "motorcycle_left.png": ("motorbike",),
    "motorcycle_right.png": ("motorbike",),
}
WITHOUT_CLASSES = (
    *("brick.png", "cell.png", "clock_motion.png", "coins.png", "grass.png", "gravel.png"),
    *("hubble_deep_field.jpg", "ihc.png", "microaneurysms.png", "moon.png", "page.png"),
    *("retina.jpg", "rocket.jpg", "text.png"),
)
DRAWN = (
    *("astronaut.png", "chelsea.png", "motorcycle_left.png"),
    *("coffee.png", "rocket.jpg", "camera.png"),
)
CELL_PX = 300

Labelled = tuple[str, NDArray[np.uint8], set[int]]
"""An image's name, its pixels, and the ids of the classes in it."""


def main(
    data: Annotated[
        Path | None, typer.Option(help="labelled images in any layout of docs/data.md")
    ] = None,
    split: str = "dev",
    model: Annotated[str, typer.Option(help="a name in model/, or a folder")] = "embedded",
    picture: Annotated[Path | None, typer.Option(help="JPEG to write")] = None,
) -> None:
    segmenter = Segmenter.load(model_named(model))
    print_table("scikit-image", segmenter, photographs(segmenter))
    if data is not None:
        print_table(split, segmenter, labelled(segmenter, data, split))
    if picture is not None:
        draw(segmenter).save(picture, quality=90)


def photographs(segmenter: Segmenter) -> Iterator[Labelled]:
    for name, held in (PHOTOGRAPHS | dict.fromkeys(WITHOUT_CLASSES, ())).items():
        yield name, _pixels(name), {segmenter.record.labels.index(label) for label in held}


def labelled(segmenter: Segmenter, folder: Path, split: str) -> Iterator[Labelled]:
    data = open_data(folder, split, segmenter.record.classes)
    for name in data.names:
        image_rgb, labels = data.pair(name)
        yield name, image_rgb, set(np.unique(labels).tolist()) - {IGNORED}


def _pixels(name: str) -> NDArray[np.uint8]:
    return decode_image(sample_photograph(name).read_bytes(), max_pixels=2**24)


def print_table(source: str, segmenter: Segmenter, images: Iterator[Labelled]) -> None:
    count, mistaken = 0, 0
    for name, image_rgb, held in images:
        count += 1
        segmentation = segmenter.segment(image_rgb, rule=LabelRule(keep_confidence=True))
        if found := wrong_shares(segmentation, held):
            mistaken += 1
            labels = segmenter.record.labels
            shares = [f"{labels[class_id]} {share:.0%}" for class_id, share in found.items()]
            print(f"  {name}: {', '.join(shares)}")
    print(f"{source}: {mistaken} of {count} images ({mistaken / count:.1%})")


def wrong_shares(segmentation: SegmentedImage, held: set[int]) -> dict[int, float]:
    """The large shares of confident pixels of classes that are not in the image, by class id."""
    if segmentation.confidence_map is None:
        raise TypeError("the segmenter kept no confidence map")
    confident = segmentation.confidence_map >= 255 * LEAST_CONFIDENCE
    counts = np.bincount(segmentation.label_map[confident])
    shares = dict(enumerate((counts / segmentation.label_map.size).tolist()))
    present = held | {BACKGROUND}
    return {
        number: shares[number] for number in shares.keys() - present if shares[number] > LEAST_SHARE
    }


def draw(segmenter: Segmenter) -> Image.Image:
    """Draws photographs with their classes, three per row."""
    cells = []
    for name in DRAWN:
        image_rgb = _pixels(name)
        segmentation = segmenter.segment(image_rgb)
        shown = [area.id for area in segmentation.classes]
        overlay = draw_overlay(image_rgb, segmentation.label_map, segmenter.record.classes, shown)
        overlay.thumbnail((CELL_PX, CELL_PX))
        cells.append(overlay)
    return tiled(cells, columns=3, side_px=CELL_PX)


if __name__ == "__main__":
    typer.run(main)
