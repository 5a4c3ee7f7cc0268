"""Folders of labelme's annotation files."""

import json

import numpy as np
import pytest
from PIL import Image

from segserve.runtime.record import ClassInfo
from segserve.training.data import DataError, check_split, open_data

from .images import noise

CLASSES = [
    ClassInfo(label=label, color=(n, 0, 0)) for n, label in enumerate(("background", "disc", "box"))
]
HEIGHT, WIDTH = 20, 30
SQUARE = np.zeros((HEIGHT, WIDTH), np.uint8)
SQUARE[5:10, 10:20] = 1


def write_image(folder, name="a.jpg"):
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(HEIGHT, WIDTH)).save(folder / name)


def labels_of(path, name="a.jpg", **options):
    return check_split(open_data(path, None, CLASSES, **options), CLASSES).data.labels(name)


def labelme(folder, shapes, name="a"):
    write_image(folder, f"{name}.jpg")
    document = {
        "version": "5.5.0",
        "shapes": shapes,
        "imagePath": f"..\\pictures\\{name}.jpg",
        "imageData": None,
        "imageHeight": HEIGHT,
        "imageWidth": WIDTH,
    }
    (folder / f"{name}.json").write_text(json.dumps(document))


POLYGON = {
    "label": "disc",
    "shape_type": "polygon",
    "points": [[10, 5], [20, 5], [20, 10], [10, 10]],
}


@pytest.mark.parametrize(
    "shape",
    [POLYGON, {"label": "disc", "shape_type": "rectangle", "points": [[10, 5], [20, 10]]}],
    ids=["polygon", "rectangle"],
)
def test_labelme_folder_is_read(tmp_path, shape):
    labelme(tmp_path, [shape, {"label": "box", "shape_type": "line", "points": [[1, 1], [2, 2]]}])
    assert np.array_equal(labels_of(tmp_path), SQUARE)


def test_labelme_circle_is_drawn(tmp_path):
    circle = {"label": "box", "shape_type": "circle", "points": [[15, 10], [15, 14]]}
    labelme(tmp_path, [circle])
    assert (labels_of(tmp_path) == 2).sum() == pytest.approx(np.pi * 16, rel=0.15)


def test_labelme_splits_are_folders(tmp_path):
    labelme(tmp_path / "train", [POLYGON])
    labelme(tmp_path / "dev", [POLYGON], name="b")
    for split, name in (("train", "a.jpg"), ("dev", "b.jpg")):
        data = open_data(tmp_path, split, CLASSES)
        assert data.names == [name]
        assert np.array_equal(data.labels(name), SQUARE)


def test_labelme_file_that_cannot_be_read_says_why(tmp_path):
    labelme(tmp_path, [{"points": [[1, 2]]}])
    with pytest.raises(DataError, match=r"a\.json: cannot be read"):
        labels_of(tmp_path)
