"""Measures fine-tuning: `segserve train --start` on a few images of two classes.

    python -m bench.fine_tuning --data DATA [--images 40]

DATA is a folder in PASCAL VOC layout with the 21 classes of the embedded model. Of the split's
images with one of the classes, `--images` are for training and the others for validation; other
classes are background. The classifier for the two classes starts from random weights. The other
weights have seen objects of these classes, so this is the easy case.
"""

import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Annotated

import numpy as np
import typer
import yaml
from PIL import Image

from segserve.resources import resource
from segserve.runtime.record import BACKGROUND, read_record
from segserve.training.data import IGNORED, LabelledImages, open_data

CLASSES = ("cat", "motorbike")


def main(
    data: Annotated[Path, typer.Option(help="as for `segserve evaluate`")],
    split: str = "dev",
    images: Annotated[int, typer.Option(help="for training")] = 40,
    steps: int = 300,
) -> None:
    record = read_record(resource("model/embedded"))
    class_ids = [record.labels.index(label) for label in CLASSES]
    labelled = open_data(data, split, record.classes)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        names = _write_data(labelled, class_ids, folder / "data")
        random.Random(0).shuffle(names)  # noqa: S311 - a reproducible order
        (folder / "data" / "train.txt").write_text("\n".join(names[:images]))
        (folder / "data" / "val.txt").write_text("\n".join(names[images:]))
        (folder / "classes.yaml").write_text(yaml.safe_dump(["background", *CLASSES]))
        command = [sys.executable, "-m", "segserve", "train", "model", "--start", "embedded"]
        command += ["--data", "data", "--val", "val", "--classes", "classes.yaml"]
        began_s = perf_counter()
        subprocess.run([*command, "--run", "run", "--steps", str(steps)], cwd=folder, check=True)
        minutes = (perf_counter() - began_s) / 60
        times = os.times()
        cpu_minutes = (times.children_user + times.children_system) / 60
        accuracy = read_record(folder / "model").accuracy
        if accuracy is None:
            sys.exit("the training measured no accuracy")
        print(f"{images} images for training, {len(names) - images} for validation")
        print(f"{minutes:.1f} minutes, {cpu_minutes:.1f} CPU minutes")
        print(f"mean IoU {accuracy.mean_iou:.3f}: {accuracy.class_iou}")


def _write_data(data: LabelledImages, class_ids: list[int], folder: Path) -> list[str]:
    """Writes the images that hold one of the classes, and returns their names."""
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    numbers = np.full(256, BACKGROUND, np.uint8)
    numbers[class_ids] = range(1, len(class_ids) + 1)
    numbers[IGNORED] = IGNORED
    names = []
    for name in data.names:
        image_rgb, truth = data.pair(name)
        if np.isin(truth, class_ids).any():
            Image.fromarray(image_rgb).save(folder / "images" / f"{name}.png")
            Image.fromarray(numbers[truth]).save(folder / "labels" / f"{name}.png")
            names.append(name)
    return names


if __name__ == "__main__":
    typer.run(main)
