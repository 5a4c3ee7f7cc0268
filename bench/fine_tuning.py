"""Measures fine-tuning: `segserve train --start` on a few images of two classes.

    python -m bench.fine_tuning --data DATA [--classes cat motorbike] [--images 40]

DATA is a folder in PASCAL VOC layout with the 21 classes of the embedded model. Of the split's
images with one of the classes, `--images` are for training and the others for validation; other
classes are background. The classifier for the two classes starts from random weights. The other
weights have seen objects of these classes, so this is the easy case.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import numpy as np
import yaml
from PIL import Image

from segserve.resources import resource
from segserve.runtime.record import BACKGROUND, read_record
from segserve.training.data import IGNORED, LabelledImages, open_data


def main() -> None:
    arguments = _arguments()
    record = read_record(resource("model/embedded"))
    class_ids = [record.labels.index(label) for label in arguments.classes]
    data = open_data(arguments.data, arguments.split, record.classes)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        names = _write_data(data, class_ids, folder / "data")
        random.Random(0).shuffle(names)  # noqa: S311 - a reproducible order
        splits = {"train": names[: arguments.images], "val": names[arguments.images :]}
        for split, of_split in splits.items():
            (folder / "data" / f"{split}.txt").write_text("\n".join(of_split))
        classes = folder / "classes.yaml"
        classes.write_text(yaml.safe_dump(["background", *arguments.classes]))
        began_s = perf_counter()
        _train(folder, classes, arguments.steps)
        minutes = (perf_counter() - began_s) / 60
        times = os.times()
        cpu_minutes = (times.children_user + times.children_system) / 60
        accuracy = read_record(folder / "model").accuracy
        if accuracy is None:
            sys.exit("the training measured no accuracy")
        print(f"{len(splits['train'])} images for training, {len(splits['val'])} for validation")
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


def _train(folder: Path, classes: Path, steps: int) -> None:
    command = [sys.executable, "-m", "segserve", "train", folder / "model", "--start", "embedded"]
    data = ["--data", folder / "data", "--val", "val", "--classes", classes]
    run = ["--run", folder / "run", "--steps", steps]
    subprocess.run([*map(str, [*command, *data, *run])], check=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.fine_tuning", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--data", type=Path, required=True, help="as for `segserve evaluate`")
    parser.add_argument("--split", default="dev")
    parser.add_argument("--classes", nargs="+", default=["cat", "motorbike"])
    parser.add_argument("--images", type=int, default=40, help="for training")
    parser.add_argument("--steps", type=int, default=300)
    return parser.parse_args()


if __name__ == "__main__":
    main()
