"""The check of a split before training: its counts, and its list of all problems."""

import numpy as np
import pytest

from segserve.runtime.record import ClassInfo
from segserve.training.data import DataError, VocFolder, check_split

from .voc import write_pair, write_split, write_squares

CLASSES = [
    ClassInfo(label=label, color=(0, 0, 0)) for label in ("background", "red", "blue", "green")
]


@pytest.fixture
def squares(tmp_path):
    return write_squares(tmp_path, images=5)


def test_check_split_counts_images_and_pixels_by_class(squares):
    found = check_split(VocFolder(squares, "train"), CLASSES)
    assert found.pixels.tolist() == [5 * 64 * 64 - 5 * 32 * 32, 3 * 32 * 32, 2 * 32 * 32, 0]
    assert len(found.data.names) == 5


def test_check_split_notes_classes_that_no_label_map_holds(squares):
    assert [
        note.split(": ")[1] for note in check_split(VocFolder(squares, "train"), CLASSES).notes
    ] == ["no pixel of green"]
    assert check_split(VocFolder(squares, "train"), CLASSES[:3]).notes == ()


def test_check_split_lists_all_problems_at_once_in_the_order_of_the_split(squares):
    (squares / "images" / "square0.jpg").unlink()
    (squares / "labels" / "square0.png").unlink()
    (squares / "labels" / "square1.png").write_bytes(b"no picture")
    image = squares / "images" / "square2.jpg"
    image.write_bytes(image.read_bytes()[:400])
    grey = np.full((8, 9, 3), 128, np.uint8)
    write_pair(squares, "turned", grey, np.zeros((9, 8), np.uint8))
    write_pair(squares, "unknown", grey, np.array([[4, 9, 254, 255, 0, 1, 2, 3, 0]] * 8, np.uint8))
    write_pair(squares, "deep", grey, np.full((8, 9), 256, np.uint16))
    names = [f"square{index}" for index in range(5)]
    write_split(squares, "train", [*names, "turned", "unknown", "deep", "square4"])
    with pytest.raises(
        DataError, match=r"^8 problems with the data:\n  .*/train\.txt: square4 is listed mor"
    ) as caught:
        check_split(VocFolder(squares, "train"), CLASSES)
    files = [
        problem.split(": ")[0].removeprefix(f"{squares}/") for problem in caught.value.problems
    ]
    assert files == [
        "train.txt",
        "images/square0.jpg",
        "labels/square0.png",
        "labels/square1.png",
        "images/square2.jpg",
        "labels/turned.png",
        "labels/unknown.png",
        "labels/deep.png",
    ]
    assert caught.value.problems[6].endswith(
        "labels [4, 9, 254] are none of the 4 classes: expected 0 to 3, and 255 for pixels to "
        "ignore"
    )
    assert str(caught.value).count("\n") == 8


def test_check_split_single_problem_is_a_single_line(squares):
    (squares / "labels" / "square3.png").unlink()
    with pytest.raises(DataError, match=r"^\S+labels/square3\.png: is missing$"):
        check_split(VocFolder(squares, "train"), CLASSES)


@pytest.mark.parametrize(
    "values", [(0, 0), (0, 255), (255, 255)], ids=["background", "and ignored", "ignored"]
)
def test_check_split_without_a_foreground_pixel_raises(tmp_path, values):
    labels = np.repeat(np.array(values, np.uint8), 4)[:, None].repeat(8, axis=1)
    write_pair(tmp_path, "a", np.zeros((8, 8, 3), np.uint8), labels)
    write_split(tmp_path, "train", ["a"])
    with pytest.raises(DataError, match=r"train\.txt: the split has no foreground pixel") as caught:
        check_split(VocFolder(tmp_path, "train"), CLASSES)
    assert "\n" not in str(caught.value)


def test_data_error_lists_fifty_problems_and_counts_the_rest():
    error = DataError(*(f"file {number}: is missing" for number in range(70)))
    lines = str(error).splitlines()
    assert lines[0] == "70 problems with the data:"
    assert lines[50:] == ["  file 49: is missing", "  and 20 more"]
    assert len(error.problems) == 70
