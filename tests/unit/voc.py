"""A tiny data set in PASCAL VOC layout: one coloured square on grey a picture."""

from pathlib import Path

import numpy as np
from PIL import Image

COLORS = {1: (220, 40, 40), 2: (40, 60, 220)}


def write_pair(
    folder: Path, name: str, image_rgb: np.ndarray, labels: np.ndarray, **options
) -> None:
    for part, content, suffix in (("images", image_rgb, "jpg"), ("labels", labels, "png")):
        (folder / part).mkdir(parents=True, exist_ok=True)
        keywords = {"quality": 95, "subsampling": 0, **options} if suffix == "jpg" else {}
        Image.fromarray(content).save(folder / part / f"{name}.{suffix}", **keywords)


def write_split(folder: Path, split: str, names: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))


def write_squares(folder: Path, images: int, side_px: int = 64) -> Path:
    rng = np.random.default_rng(0)
    names = [f"square{index}" for index in range(images)]
    for index, name in enumerate(names):
        class_id = 1 + index % 2
        top, left = rng.integers(0, side_px // 2, 2)
        image = np.full((side_px, side_px, 3), 128, np.uint8)
        labels = np.zeros((side_px, side_px), np.uint8)
        square = slice(top, top + side_px // 2), slice(left, left + side_px // 2)
        image[square], labels[square] = COLORS[class_id], class_id
        write_pair(folder, name, image, labels)
    write_split(folder, "train", names)
    return folder
