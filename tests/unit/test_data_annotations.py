"""Annotation files of CVAT, Label Studio and labelme."""

import base64
import json

import numpy as np
import pytest
from PIL import Image

from segserve.runtime.record import ClassInfo
from segserve.training.data import DataError, ReadOptions, check_split, open_data
from segserve.training.data.opening import split_names

from .images import encoded, noise

CLASSES = [
    ClassInfo(label=label, color=(n, 0, 0)) for n, label in enumerate(("background", "disc", "box"))
]
HEIGHT, WIDTH = 20, 30
SQUARE = np.zeros((HEIGHT, WIDTH), np.uint8)
SQUARE[5:10, 10:20] = 1


def write_image(folder, name="a.jpg"):
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(HEIGHT, WIDTH)).save(folder / name)


def checked(path, **options):
    return check_split(open_data(path, None, CLASSES, **options), CLASSES)


def labels_of(path, name="a.jpg", **options):
    return checked(path, **options).data.labels(name)


def notes_of(path, **options):
    """The notes, without those on classes without a pixel."""
    return [note for note in checked(path, **options).notes if ": no pixel of " not in note]


SKIP = ReadOptions(skip_broken=True)


def ellipse(x, y, radius_x, radius_y):
    """The pixels whose centres are in an ellipse, uint8 (H, W)."""
    ys, xs = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    return (((xs - x) / radius_x) ** 2 + ((ys - y) / radius_y) ** 2 <= 1).astype(np.uint8)


def assert_almost_equal(labels, expected):
    """Pixels on an outline may differ."""
    assert (labels != expected).sum() <= 0.1 * expected.sum()


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
        '<box label="disc" xtl="12.5" ytl="2.5" xbr="17.5" ybr="12.5" rotation="90.00"/>',
        '<box label="disc" xtl="10" ytl="5" xbr="20" ybr="10" rotation="180"/>',
    ],
    ids=["polygon", "box", "mask", "turned box", "upside down"],
)
def test_cvat_xml_shapes_are_drawn(tmp_path, shape):
    path = cvat(tmp_path, f'{shape}<points label="box" points="1,1"/><tag label="box"/>')
    assert np.array_equal(labels_of(path), SQUARE)
    assert notes_of(path) == [f"{path}: shapes left out, which are not drawn: 1 points"]


def test_cvat_xml_box_is_turned_clockwise(tmp_path):
    box = '<box label="disc" xtl="5" ytl="8" xbr="25" ybr="12" rotation="30"/>'
    labels = labels_of(cvat(tmp_path, box))
    assert labels[13, 21] == 1  # the right end is lower, in rows counted from the top
    assert labels[6, 21] == 0
    assert int(labels.sum()) == pytest.approx(20 * 4, rel=0.1)


@pytest.mark.parametrize(
    ("radii", "rotation"),
    [('rx="8" ry="5"', ""), ('rx="5" ry="8"', 'rotation="90"')],
    ids=["upright", "turned"],
)
def test_cvat_xml_ellipse_is_drawn(tmp_path, radii, rotation):
    shape = f'<ellipse label="disc" cx="15" cy="10" {radii} {rotation}/>'
    assert_almost_equal(labels_of(cvat(tmp_path, shape)), ellipse(15, 10, 8, 5))


def test_cvat_xml_shape_that_is_not_drawn_is_an_error_or_left_out_and_counted(tmp_path):
    box = '<box label="disc" xtl="10" ytl="5" xbr="20" ybr="10"/>'
    path = cvat(tmp_path, f'{box}<cuboid label="box" xtl1="1"/><cuboid label="disc" xtl1="1"/>')
    with pytest.raises(DataError, match=r"\.xml: a\.jpg: shapes of type cuboid cannot be drawn"):
        open_data(path, None, CLASSES)
    assert np.array_equal(labels_of(path, options=SKIP), SQUARE)
    (note,) = notes_of(path, options=SKIP)
    assert note == f"{path}: shapes left out, which are not drawn: 2 cuboid"


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


SIZE = {"original_width": WIDTH, "original_height": HEIGHT}


def studio_tasks(tmp_path, *tasks):
    (tmp_path / "tasks.json").write_text(json.dumps(tasks))
    return tmp_path / "tasks.json"


def studio_task(*results, address="/data/upload/4/a.jpg", **annotation):
    return {"data": {"image": address}, "annotations": [{"result": results, **annotation}]}


def studio(tmp_path, kind, value, address="/data/upload/4/a.jpg"):
    write_image(tmp_path / "images")
    result = {"type": kind, "value": {**value, kind: ["disc"]}, **SIZE}
    return studio_tasks(tmp_path, studio_task(result, address=address))


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
    "turned rectangle": (
        "rectanglelabels",
        {
            **{"x": 100 * 20 / WIDTH, "y": 25, "width": 100 * 5 / WIDTH, "height": 50},
            "rotation": 90,  # about the upper left corner
        },
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
        "/data/local-files/?d=imgs/a.jpg",
        "http://localhost:8080/data/local-files/?d=imgs%5Ca.jpg",
    ],
    ids=["upload", "url", "s3", "windows", "local", "local windows"],
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


@pytest.mark.parametrize(
    ("radii", "rotation"), [((8, 5), 0), ((5, 8), 90)], ids=["upright", "turned"]
)
def test_label_studio_ellipse_is_drawn(tmp_path, radii, rotation):
    radius_x, radius_y = percent(*radii)
    value = {"x": 50, "y": 50, "radiusX": radius_x, "radiusY": radius_y, "rotation": rotation}
    path = studio(tmp_path, "ellipselabels", value)
    assert_almost_equal(labels_of(path, images=tmp_path / "images"), ellipse(15, 10, 8, 5))


def test_label_studio_shape_and_labels_may_be_two_results(tmp_path):
    write_image(tmp_path / "images")
    _, value = STUDIO["polygon"]
    shape = {"id": "q", "type": "polygon", "value": value, **SIZE}
    labels = {"id": "q", "type": "labels", "value": {**value, "labels": ["disc"]}, **SIZE}
    path = studio_tasks(tmp_path, studio_task(shape, labels))
    assert np.array_equal(labels_of(path, images=tmp_path / "images"), SQUARE)
    assert notes_of(path, images=tmp_path / "images") == []


def test_label_studio_shapes_that_are_not_drawn_are_counted(tmp_path):
    write_image(tmp_path / "images")
    kind, value = STUDIO["rectangle"]
    point = {"x": 50, "y": 50, "width": 1, "keypointlabels": ["box"]}
    path = studio_tasks(
        tmp_path,
        studio_task(
            {"id": "a", "type": kind, "value": {**value, kind: ["disc"]}, **SIZE},
            {"id": "a", "type": "choices", "value": {**value, "choices": ["good"]}, **SIZE},
            {"id": "b", "type": "keypointlabels", "value": point, **SIZE},
            {"id": "c", "type": "rectangle", "value": value, **SIZE},
            {"id": "d", "type": kind, "value": value, **SIZE},
        ),
    )
    assert np.array_equal(labels_of(path, images=tmp_path / "images"), SQUARE)
    (note,) = notes_of(path, images=tmp_path / "images")
    kinds = "1 keypointlabels, 1 rectangle without a label, 1 rectanglelabels without a label"
    assert note == f"{path}: shapes left out, which are not drawn: {kinds}"


def test_label_studio_shape_of_another_type_is_an_error(tmp_path):
    path = studio(tmp_path, "bitmasklabels", {"imageDataURL": "data:,"})
    with pytest.raises(DataError, match=r"a\.jpg: shapes of type bitmasklabels cannot be drawn"):
        labels_of(path, images=tmp_path / "images")


@pytest.mark.parametrize(
    "results",
    [(), [{"type": "choices", "value": {"choices": ["empty"]}}]],
    ids=["empty", "of the whole image"],
)
def test_label_studio_image_without_shapes_is_background(tmp_path, results):
    for name in ("a.jpg", "b.jpg"):
        write_image(tmp_path / "images", name)
    kind, value = STUDIO["rectangle"]
    drawn = {"type": kind, "value": {**value, kind: ["disc"]}, **SIZE}
    path = studio_tasks(
        tmp_path,
        studio_task(drawn),
        studio_task(*results, address="/data/upload/4/b.jpg"),
        studio_task(address="/data/upload/4/skipped.jpg", was_cancelled=True),
        {"data": {"image": "/data/upload/4/to do.jpg"}, "annotations": []},
    )
    found = checked(path, images=tmp_path / "images")
    assert found.data.names == ["a.jpg", "b.jpg"]
    assert np.array_equal(found.data.labels("b.jpg"), np.zeros_like(SQUARE))


def test_label_studio_image_without_shapes_that_is_missing_is_an_error(tmp_path):
    path = studio_tasks(tmp_path, studio_task())
    with pytest.raises(DataError, match=r"images.a\.jpg: is missing$"):
        labels_of(path, images=tmp_path / "images")


def test_label_studio_image_is_named_by_its_key_before_others(tmp_path):
    path = studio(tmp_path, *STUDIO["rectangle"])
    (task,) = json.loads(path.read_text())
    task["data"] = {"title": "A photograph", **task["data"], "source": "b.jpg"}
    path.write_text(json.dumps([task]))
    assert np.array_equal(labels_of(path, images=tmp_path / "images"), SQUARE)


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


def labelme_mask(mask, corners):
    return {
        "label": "disc",
        "shape_type": "mask",
        "points": corners,
        "mask": base64.b64encode(encoded(mask)).decode(),
    }


def test_labelme_mask_is_drawn(tmp_path):
    mask = np.array([[1, 0, 1], [0, 1, 1]], np.uint8)
    labelme(tmp_path, [labelme_mask(mask, [[10.0, 5.0], [12.0, 6.0]])])
    labels = labels_of(tmp_path / "a.json")
    assert labels[5:7, 10:13].tolist() == mask.tolist()
    assert labels.sum() == mask.sum()


@pytest.mark.parametrize(
    ("mask", "corners", "message"),
    [
        (SQUARE, [[-1, 0], [28, 19]], "leads out of the image"),
        (SQUARE[..., None].repeat(3, axis=-1), [[0, 0], [29, 19]], "is no grey PNG"),
    ],
    ids=["left", "colours"],
)
def test_labelme_mask_that_does_not_fit_says_why(tmp_path, mask, corners, message):
    labelme(tmp_path, [labelme_mask(mask, corners)])
    with pytest.raises(DataError, match=rf"a\.json: cannot be read: .*{message}"):
        labels_of(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (base64.b64encode(b"GIF89a").decode(), "mask: is no PNG file"),
        ("iVBOR", ".*base64"),
        (None, ".*NoneType"),
    ],
    ids=["gif", "cut", "none"],
)
def test_labelme_mask_that_is_no_png_says_so(tmp_path, content, message):
    labelme(tmp_path, [{**labelme_mask(SQUARE, [[0, 0], [29, 19]]), "mask": content}])
    with pytest.raises(DataError, match=rf"a\.json: cannot be read: {message}"):
        labels_of(tmp_path / "a.json")


def test_labelme_shape_that_is_not_drawn_is_an_error_or_counted(tmp_path):
    points = [[1, 1], [2, 2]]
    line = {"label": "box", "shape_type": "line", "points": points}
    labelme(tmp_path, [POLYGON, line, line, {**line, "shape_type": "oriented_rectangle"}])
    path = tmp_path / "a.json"
    with pytest.raises(DataError, match=r"a\.jpg: shapes of type oriented_rectangle cannot be"):
        open_data(path, None, CLASSES)
    (note,) = notes_of(path, options=SKIP)
    assert note == f"{path}: shapes left out, which are not drawn: 2 line, 1 oriented_rectangle"


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
    for shape in (
        {"points": [[1, 2]]},
        {"label": "box", "shape_type": "circle", "points": [[1, 2]]},
    ):
        labelme(tmp_path, [shape])
        with pytest.raises(DataError, match=r"a\.json: cannot be read"):
            labels_of(tmp_path)
