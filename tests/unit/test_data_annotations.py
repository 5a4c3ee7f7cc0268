"""Annotation files of CVAT, Label Studio and labelme."""

import json

import numpy as np
import pytest
from PIL import Image

from segserve.runtime.record import ClassInfo
from segserve.training.data import DataError, check_split, open_data
from segserve.training.data.opening import split_names

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


# CVAT


def cvat(tmp_path, shapes):
    write_image(tmp_path)
    image = f'<image id="0" name="a.jpg" width="{WIDTH}" height="{HEIGHT}">{shapes}</image>'
    (tmp_path / "annotations.xml").write_text(
        f'<?xml version="1.0"?><annotations><version>1.1</version>{image}</annotations>'
    )
    return tmp_path / "annotations.xml"


@pytest.mark.parametrize(
    "shape",
    [
        '<polygon label="disc" points="10.0,5.0;20.0,5.0;20.0,10.0;10.0,10.0" z_order="0"/>',
        '<box label="disc" xtl="10" ytl="5" xbr="20" ybr="10"/>',
        '<mask label="disc" rle="0, 50" left="10" top="5" width="10" height="5"/>',
    ],
    ids=["polygon", "box", "mask"],
)
def test_cvat_xml_shapes_are_drawn(tmp_path, shape):
    path = cvat(tmp_path, f'{shape}<points label="box" points="1,1"/>')
    assert np.array_equal(labels_of(path), SQUARE)


def test_cvat_xml_can_be_named_as_the_split(tmp_path):
    path = cvat(tmp_path, '<box label="disc" xtl="10" ytl="5" xbr="20" ybr="10"/>')
    assert np.array_equal(open_data(tmp_path, str(path), CLASSES).labels("a.jpg"), SQUARE)


def test_cvat_xml_mask_is_row_by_row_within_its_box(tmp_path):
    path = cvat(tmp_path, '<mask label="box" rle="1, 2, 3" left="4" top="6" width="3" height="2"/>')
    labels = labels_of(path)
    assert labels[6, 4:7].tolist() == [0, 2, 2]
    assert labels[7, 4:7].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<annotations>", "is not XML"),
        ("<annotations></annotations>", "expected CVAT's `image` elements"),
        ('<!DOCTYPE x [<!ENTITY a "b">]><x>&a;</x>', "entities are not read"),
        (
            '<a><image name="a.jpg" width="30" height="20"><mask label="disc" rle="1" left="0" '
            'top="0" width="9" height="9"/></image></a>',
            "a.jpg: cannot be read: the run lengths",
        ),
        ('<a><image name="a.jpg"><polygon/></image></a>', "a.jpg: cannot be read"),
    ],
    ids=["cut", "other", "entities", "mask", "keys"],
)
def test_cvat_xml_that_cannot_be_read_says_why(tmp_path, content, message):
    write_image(tmp_path)
    (tmp_path / "a.xml").write_text(content)
    with pytest.raises(DataError, match=message):
        labels_of(tmp_path / "a.xml")


# Label Studio


def brush(mask):
    """Encoded as one run of values after another: repeated ones where they are equal."""
    values = np.repeat(mask.ravel().astype(np.uint8) * 255, 4).tolist()
    bits = f"{len(values):032b}{7:05b}{2:04b}{7:04b}{11:04b}{15:04b}"
    place = 0
    while place < len(values):
        end = place
        while end < len(values) and values[end] == values[place] and end - place < 4096:
            end += 1
        if end - place > 4:
            bits += f"110{end - place - 1:012b}{values[place]:08b}"
        else:
            end = min(place + 4, len(values))
            bits += f"000{end - place - 1:03b}" + "".join(f"{v:08b}" for v in values[place:end])
        place = end
    bits += "0" * (-len(bits) % 8)
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


def studio(tmp_path, kind, value, address="/data/upload/4/a.jpg"):
    write_image(tmp_path / "images")
    size = {"original_width": WIDTH, "original_height": HEIGHT}
    result = {"type": kind, "value": {**value, kind: ["disc"]}, **size}
    tasks = [{"data": {"image": address}, "annotations": [{"result": [result]}]}]
    (tmp_path / "tasks.json").write_text(json.dumps(tasks))
    return tmp_path / "tasks.json"


def percent(x, y):
    return [100 * x / WIDTH, 100 * y / HEIGHT]


STUDIO = {
    "polygon": (
        "polygonlabels",
        {"points": [percent(10, 5), percent(20, 5), percent(20, 10), percent(10, 10)]},
    ),
    "rectangle": (
        "rectanglelabels",
        {"x": 100 * 10 / WIDTH, "y": 25, "width": 100 * 10 / WIDTH, "height": 25},
    ),
    "brush": ("brushlabels", {"format": "rle", "rle": brush(SQUARE > 0)}),
}


@pytest.mark.parametrize(("kind", "value"), STUDIO.values(), ids=STUDIO)
@pytest.mark.parametrize(
    "address",
    [
        "/data/upload/4/a.jpg",
        "https://example.org/x/a.jpg?y=1",
        "s3://bucket/a.jpg",
        "D:\\x\\a.jpg",
    ],
    ids=["upload", "url", "s3", "windows"],
)
def test_label_studio_results_are_drawn(tmp_path, kind, value, address):
    path = studio(tmp_path, kind, value, address)
    assert np.array_equal(labels_of(path, images=tmp_path / "images"), SQUARE)


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        ("brushlabels", {"rle": brush(SQUARE > 0)[:20]}, "ends too early"),
        ("brushlabels", {"rle": brush(SQUARE[:4] > 0)}, "is of another size"),
        ("polygonlabels", {}, "cannot be read"),
    ],
    ids=["cut", "size", "keys"],
)
def test_label_studio_result_that_cannot_be_read_says_why(tmp_path, kind, value, message):
    with pytest.raises(DataError, match=message):
        labels_of(studio(tmp_path, kind, value), images=tmp_path / "images")


@pytest.mark.parametrize("content", ["[", "[1, 2]", '[{"a": 1}]'], ids=["cut", "numbers", "other"])
def test_label_studio_file_that_is_none_says_so(tmp_path, content):
    (tmp_path / "tasks.json").write_text(content)
    with pytest.raises(DataError, match=r"tasks\.json: (is not JSON|expected Label Studio)"):
        labels_of(tmp_path / "tasks.json", images=tmp_path)


# labelme


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
    line = {"label": "box", "shape_type": "line", "points": [[1, 1], [2, 2]]}
    labelme(tmp_path / "train", [shape, line])
    assert np.array_equal(labels_of(tmp_path), SQUARE)


def test_labelme_circle_is_drawn(tmp_path):
    circle = {"label": "box", "shape_type": "circle", "points": [[15, 10], [15, 14]]}
    labelme(tmp_path, [circle])
    assert (labels_of(tmp_path / "a.json") == 2).sum() == pytest.approx(np.pi * 16, rel=0.15)


def test_labelme_file_is_a_split_of_its_own(tmp_path):
    labelme(tmp_path, [POLYGON])
    assert np.array_equal(labels_of(tmp_path / "a.json"), SQUARE)


def test_labelme_splits_are_folders(tmp_path):
    labelme(tmp_path / "train", [POLYGON])
    labelme(tmp_path / "dev", [POLYGON], name="b")
    for split, name in (("train", "a.jpg"), ("dev", "b.jpg")):
        data = open_data(tmp_path, split, CLASSES)
        assert data.names == [name]
        assert np.array_equal(data.labels(name), SQUARE)
    assert split_names(tmp_path) == ["dev", "train"]
    with pytest.raises(DataError, match="there is no split test; there are dev, train"):
        open_data(tmp_path, "test", CLASSES)


def test_labelme_folder_is_split_by_a_fixed_seed_and_says_so(tmp_path):
    for n in range(6):
        labelme(tmp_path, [POLYGON], name=f"p{n}")
    assert split_names(tmp_path) == ["dev", "train"]
    train, dev = (open_data(tmp_path, split, CLASSES) for split in ("train", "dev"))
    assert (train.split, len(train.names), dev.split, len(dev.names)) == ("train", 5, "dev", 1)
    assert not {*train.names} & {*dev.names}
    assert open_data(tmp_path, "val", CLASSES).names == dev.names
    note = f"{tmp_path}: has no split lists; dev are 1 of 6 images, chosen by a fixed seed"
    assert note in check_split(dev, CLASSES).notes
    with pytest.raises(DataError, match="test: there is no such split list"):
        open_data(tmp_path, "test", CLASSES)


def test_labelme_files_in_a_folder_in_voc_layout_are_no_split(tmp_path):
    labelme(tmp_path / "images", [POLYGON])
    (tmp_path / "labels").mkdir()
    Image.fromarray(SQUARE).save(tmp_path / "labels" / "a.png")
    (tmp_path / "train.txt").write_text("a")
    assert split_names(tmp_path) == ["train"]
    assert open_data(tmp_path, "train", CLASSES).names == ["a"]


def test_labelme_file_that_cannot_be_read_says_why(tmp_path):
    labelme(tmp_path, [{"points": [[1, 2]]}])
    with pytest.raises(DataError, match=r"a\.json: cannot be read"):
        labels_of(tmp_path)
