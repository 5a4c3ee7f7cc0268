"""Label images as tools export them: colours, other ids, other layouts, and how they are read."""

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from segserve.cli import app
from segserve.runtime.record import ClassInfo
from segserve.training.data import DataError, ReadOptions, check_split, open_data, read_class_file
from segserve.training.data.label_images import LabelCoding, read_label_image, read_labelmap
from segserve.training.data.opening import split_names

from .images import encoded, noise, png
from .tiny import write_tiny_model

CLASSES = tuple(
    ClassInfo(label=label, color=color)
    for label, color in (("background", (0, 0, 0)), ("disc", (128, 0, 0)), ("box", (0, 128, 0)))
)
IDS = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)
COLORS = np.array([info.color for info in CLASSES], np.uint8)


def read(tmp_path, content, **options):
    (tmp_path / "a.png").write_bytes(content)
    return read_label_image(tmp_path / "a.png", LabelCoding.of(CLASSES, **options)).tolist()


@pytest.mark.parametrize(
    "content",
    [
        encoded(IDS),
        encoded(IDS.astype(np.uint16)),
        encoded(Image.fromarray(IDS).convert("LA")),
        encoded(np.stack([IDS] * 3, axis=-1)),
        encoded(COLORS[IDS]),
        encoded(np.dstack([COLORS[IDS], np.full((2, 3), 255, np.uint8)])),
        png(3, 2, bits=2, color=0, scanlines=b"\0\x18\0\x90"),
    ],
    ids=["grey", "16 bits", "alpha", "grey in RGB", "colours", "RGBA", "2 bits"],
)
def test_label_image_of_any_kind_gives_class_ids(tmp_path, content):
    assert read(tmp_path, content) == IDS.tolist()


def test_label_image_of_one_bit_gives_0_and_1(tmp_path):
    assert read(tmp_path, encoded(IDS > 0)) == (IDS > 0).astype(int).tolist()


PALETTE = tuple(
    ClassInfo(label=label, color=color)
    for label, color in (("building", (0, 0, 255)), ("clutter", (0, 0, 0)), ("road", (255,) * 3))
)
"""Grey colours of classes, as of ISPRS and DeepGlobe; the others are not grey."""


@pytest.mark.parametrize("alpha", [False, True], ids=["RGB", "RGBA"])
@pytest.mark.parametrize("ids", [[2, 2], [1, 1], [1, 2], [0, 1, 2]], ids=str)
def test_label_image_in_grey_colours_of_classes_is_read_by_colour(tmp_path, ids, alpha):
    pixels = np.array([[PALETTE[class_id].color for class_id in ids]], np.uint8)
    if alpha:
        pixels = np.dstack([pixels, np.full((1, len(ids)), 255, np.uint8)])
    (tmp_path / "a.png").write_bytes(encoded(pixels))
    assert read_label_image(tmp_path / "a.png", LabelCoding.of(PALETTE)).tolist() == [ids]


@pytest.mark.parametrize(
    ("color", "pixel"),
    [(4, b"\0\3\xff\xff"), (2, b"\0\3" * 3), (6, b"\0\3" * 3 + b"\xff\xff")],
    ids=["grey and alpha", "RGB", "RGBA"],
)
def test_label_image_with_channels_of_16_bits_says_what_to_save(tmp_path, color, pixel):
    content = png(2, 1, bits=16, color=color, scanlines=b"\0" + pixel * 2)
    with pytest.raises(DataError, match=r"a\.png: has \w+ channels of 16 bits.*: save it as grey"):
        read(tmp_path, content)


def test_label_image_voc_s_border_colour_is_ignored(tmp_path):
    pixels = COLORS[IDS]
    pixels[0, 0] = (224, 224, 192)
    assert read(tmp_path, encoded(pixels))[0][0] == 255


def test_label_image_with_a_colour_of_no_class_names_it(tmp_path):
    pixels = COLORS[IDS]
    pixels[0, 0] = (1, 2, 3)
    with pytest.raises(DataError, match=r"a\.png: 1 colours are of no class: \(1, 2, 3\)"):
        read(tmp_path, encoded(pixels))


def test_label_image_with_values_above_255_says_so(tmp_path):
    with pytest.raises(DataError, match="values up to 300"):
        read(tmp_path, encoded(np.full((2, 3), 300, np.uint16)))


@pytest.mark.parametrize(
    ("ignore_id", "expected"),
    [(255, [0, 1, 255]), (None, [0, 1, 255]), (1, [0, 255, 255])],
    ids=str,
)
def test_label_image_ignore_id(tmp_path, ignore_id, expected):
    content = encoded(np.array([[0, 1, 255]], np.uint8))
    assert read(tmp_path, content, ignore_id=ignore_id) == [expected]


def test_label_image_of_0_and_255_without_ignored_pixels_is_foreground(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(np.array([[0, 255]], np.uint8)))
    coding = LabelCoding.of(CLASSES[:2], ignore_id=None)
    assert read_label_image(tmp_path / "a.png", coding).tolist() == [[0, 1]]


def test_label_image_values_are_mapped_by_the_numbers_of_a_class_file(tmp_path):
    (tmp_path / "classes.yaml").write_text(
        "classes:\n- {label: background, from: [0, 7]}\n- {label: disc, from: [26]}\nignore: [9]\n"
    )
    listed = read_class_file(tmp_path / "classes.yaml")
    content = encoded(np.array([[0, 7, 26, 9, 255]], np.uint8))
    assert read(tmp_path, content, categories=listed.categories) == [[0, 0, 1, 255, 255]]
    with pytest.raises(DataError, match="values in no class: 8; name them in the class file"):
        read(tmp_path, encoded(np.full((1, 1), 8, np.uint8)), categories=listed.categories)


# Layouts


def write_set(folder, labels="{}.png", images="{}.jpg", lists=True):
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for n in range(6):
        Image.fromarray(noise(2, 3, n)).save(folder / "images" / images.format(f"p{n}"))
        Image.fromarray(IDS).save(folder / "labels" / labels.format(f"p{n}"))
    if lists:
        (folder / "train.txt").write_text("p0\np1.jpg\n")
    return folder


def opened(folder, split="train", classes=CLASSES, **options):
    return check_split(open_data(folder, split, classes, **options), classes)


@pytest.mark.parametrize(
    "names",
    [{"labels": "{}_mask.png"}, {"images": "{}.GIF"}, {"images": "{}.Jpg"}, {}],
    ids=["mask suffix", "gif", "mixed case", "suffix in the list"],
)
def test_folder_with_unusual_names_is_read(tmp_path, names):
    found = opened(write_set(tmp_path / "data", **names))
    assert found.data.names == ["p0", "p1"]
    assert found.pixels.tolist() == [4, 4, 4]


def test_folder_without_lists_is_split_by_a_fixed_seed_and_says_so(tmp_path):
    folder = write_set(tmp_path / "data", lists=False)
    train, dev = opened(folder), opened(folder, "dev")
    assert len(train.data.names) == 5
    assert len(dev.data.names) == 1
    assert not set(train.data.names) & set(dev.data.names)
    assert opened(folder).data.names == train.data.names
    assert "has no split lists; train are 5 of 6 images" in train.notes[0]
    with pytest.raises(DataError, match=r"other\.txt: there is no such split list"):
        opened(folder, "other")


@pytest.mark.parametrize(
    "content",
    [b"Photographs of p0 and p1\n", b"background\ndisc\n", b"\xff\n", b"x" * 300 + b"\n", b""],
    ids=["text", "classes", "no text", "long line", "empty"],
)
def test_folder_with_a_text_that_lists_no_image_is_split_by_the_seed(tmp_path, content):
    folder = write_set(tmp_path / "data", lists=False)
    (folder / "README.txt").write_bytes(content)
    assert len(opened(folder).data.names) == 5
    assert split_names(folder) == ["dev", "train"]


@pytest.mark.parametrize("content", ["p1.jpg\nmissing\n", "sub/p6\n"], ids=["some", "subfolder"])
def test_folder_with_a_list_of_any_name_is_not_split_by_the_seed(tmp_path, content):
    folder = write_set(tmp_path / "data", lists=False)
    (folder / "images" / "sub").mkdir()
    Image.fromarray(noise(2, 3)).save(folder / "images" / "sub" / "p6.jpg")
    (folder / "README.txt").write_text("Photographs\n")
    (folder / "mine.txt").write_text(content)
    assert split_names(folder) == ["mine"]
    with pytest.raises(DataError, match=r"no such split list; lists in that folder: mine$"):
        open_data(folder, "train", CLASSES)


def test_folder_with_a_list_of_missing_images_is_not_split_by_the_seed(tmp_path):
    folder = write_set(tmp_path / "data", lists=False)
    (folder / "train.txt").write_text("missing\n")
    with pytest.raises(DataError, match=r"no such split list; lists in that folder: train$"):
        open_data(folder, "dev", CLASSES)


def test_folder_with_jpeg_labels_says_what_to_do(tmp_path):
    folder = write_set(tmp_path / "data")
    for path in (folder / "labels").iterdir():
        path.rename(path.with_suffix(".jpg"))
    with pytest.raises(DataError, match=r"p0\.jpg: JPEG changes the values"):
        opened(folder)


def test_folder_with_labelmap_of_cvat_maps_its_colours(tmp_path):
    folder = write_set(tmp_path / "data")
    (folder / "labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\nbox:9,9,200::\ndisc:200,9,9::\n"
    )
    colors = np.array([(0, 0, 0), (200, 9, 9), (9, 9, 200)], np.uint8)
    for path in (folder / "labels").iterdir():
        Image.fromarray(colors[IDS]).save(path)
    assert opened(folder).pixels.tolist() == [4, 4, 4]
    (folder / "labelmap.txt").write_text("background:0,0\n")
    with pytest.raises(DataError, match=r"labelmap\.txt: expected name:R,G,B"):
        read_labelmap(folder / "labelmap.txt")


def test_cityscapes_maps_ids_by_name(tmp_path):
    for kind, ending in (("leftImg8bit", "leftImg8bit"), ("gtFine", "gtFine_labelIds")):
        folder = tmp_path / kind / "train" / "aachen"
        folder.mkdir(parents=True)
        pixels = noise(1, 4) if kind == "leftImg8bit" else np.array([[7, 24, 26, 0]], np.uint8)
        Image.fromarray(pixels).save(folder / f"a_{ending}.png")
    classes = [ClassInfo(label=label, color=(n, 0, 0)) for n, label in enumerate(("road", "car"))]
    with pytest.raises(DataError, match=r"in no class: 24 \(person\)"):
        opened(tmp_path, classes=classes)
    categories = {"road": 0, "car": 1, "person": 255}
    assert opened(tmp_path, classes=classes, categories=categories).pixels.tolist() == [1, 1]


def test_roboflow_masks_map_values_by_their_table(tmp_path):
    folder = tmp_path / "valid"
    folder.mkdir()
    Image.fromarray(noise(2, 3)).save(folder / "a.jpg")
    Image.fromarray(IDS).save(folder / "a_mask.png")
    (folder / "_classes.csv").write_text("Pixel Value, Class\n0, background\n1, box\n2, disc\n")
    assert opened(tmp_path, "dev").data.labels("a").tolist() == [[0, 2, 1], [1, 2, 0]]


@pytest.mark.parametrize("file", ["_classes.csv", "_annotations.coco.json"])
def test_roboflow_without_the_split_names_the_splits(tmp_path, file):
    for split in ("valid", "train"):
        (tmp_path / split).mkdir()
        (tmp_path / split / file).touch()
    with pytest.raises(DataError, match="there is no split test; there are train, valid"):
        opened(tmp_path, "test")


def test_roboflow_coco_is_found_by_its_split(tmp_path):
    (tmp_path / "train").mkdir()
    Image.fromarray(noise(20, 20)).save(tmp_path / "train/a.jpg")
    document = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 20, "height": 20}],
        "categories": [{"id": 0, "name": "shapes"}, {"id": 1, "name": "disc"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[2, 2, 9, 2, 9, 9]]},
            {"id": 2, "image_id": 1, "category_id": 1, "segmentation": [[1, 2]]},
        ],
    }
    (tmp_path / "train/_annotations.coco.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match="annotation 2: a polygon needs"):
        opened(tmp_path)
    found = check_split(
        open_data(tmp_path, "train", CLASSES, options=ReadOptions(skip_broken=True)),
        CLASSES,
        skip_broken=True,
    )
    assert found.pixels[1] > 0
    assert any("1 annotations left out" in note for note in found.notes)


def test_coco_crowds_are_ignored_or_objects(tmp_path):
    (tmp_path / "train").mkdir()
    Image.fromarray(noise(4, 4)).save(tmp_path / "train/a.jpg")
    mask = {"size": [4, 4], "counts": [4, 8, 4]}
    document = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 4, "height": 4}],
        "categories": [{"id": 1, "name": "disc"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "segmentation": mask, "iscrowd": 1}
        ],
    }
    (tmp_path / "train/_annotations.coco.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match=r"no foreground pixel.*--crowds objects"):
        opened(tmp_path)
    found = opened(tmp_path, options=ReadOptions(crowds_as_objects=True))
    assert found.pixels.tolist() == [8, 8, 0]


def test_check_split_skips_broken_images_and_counts_them(tmp_path):
    folder = write_set(tmp_path / "data")
    (folder / "images" / "p1.jpg").write_bytes(b"broken")
    found = check_split(open_data(folder, "train", CLASSES), CLASSES, skip_broken=True)
    assert found.data.names == ["p0"]
    assert any("1 images left out" in note for note in found.notes)


# Commands


def test_evaluate_of_0_and_255_names_the_flag_that_reads_it(tmp_path):
    folder = write_set(tmp_path / "data")
    for path in (folder / "labels").iterdir():
        Image.fromarray((IDS > 0).astype(np.uint8) * 255).save(path)
    (tmp_path / "model").mkdir()
    record = {"classes": CLASSES[:2]}
    model = write_tiny_model(tmp_path / "model", **record)
    command = ["evaluate", str(model), "--data", str(folder), "--split", "train"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1
    assert "--ignore-id none reads it" in result.stderr
    result = CliRunner().invoke(app, [*command, "--ignore-id", "none"])
    assert result.exit_code == 0, result.stderr
    result = CliRunner().invoke(app, [*command, "--ignore-id", "300"])
    assert result.exit_code == 1
    assert "--ignore-id: expected none or a value up to 255" in result.stderr


def test_problems_are_printed_one_a_line(tmp_path):
    folder = write_set(tmp_path / "data")
    for name in ("p0", "p1"):
        (folder / "images" / f"{name}.jpg").write_bytes(b"broken")
    (tmp_path / "model").mkdir()
    model = write_tiny_model(tmp_path / "model")
    command = ["evaluate", str(model), "--data", str(folder), "--split", "train"]
    lines = CliRunner().invoke(app, command).stderr.splitlines()
    assert lines[0] == "segserve: 2 problems with the data:"
    assert [line.split(": ")[0].rsplit("/", 1)[1] for line in lines[1:]] == ["p0.jpg", "p1.jpg"]


def test_data_check_prints_what_every_split_holds(tmp_path):
    folder = write_set(tmp_path / "data")
    (folder / "dev.txt").write_text("p2\n")
    (folder / "classes.yaml").write_text("- background\n- disc\n- box\n")
    command = ["data", "check", str(folder), "--sheet", str(tmp_path / "sheet.png")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.stderr
    assert "dev: 1 images of 3 x 2 to 3 x 2 pixels" in result.stdout
    assert "train: 2 images" in result.stdout
    assert "33.33%" in result.stdout
    assert Image.open(tmp_path / "sheet.png").size == (1200, 240)


def test_data_check_lists_problems_and_ends_with_1(tmp_path):
    folder = write_set(tmp_path / "data")
    for name in ("p0", "p1"):
        (folder / "images" / f"{name}.jpg").unlink()
    (folder / "classes.yaml").write_text("- background\n- disc\n- box\n")
    result = CliRunner().invoke(app, ["data", "check", str(folder)])
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 3


def test_data_check_without_classes_says_what_is_missing(tmp_path):
    result = CliRunner().invoke(app, ["data", "check", str(write_set(tmp_path / "data"))])
    assert result.exit_code == 1
    assert "there is no class file; name one with --classes, or --model" in result.stderr
