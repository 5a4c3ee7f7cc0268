"""The class file."""

import pytest

from segserve.runtime.record import voc_color
from segserve.training.data import DataError, read_class_file


def written(tmp_path, text):
    path = tmp_path / "classes.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("class_id", "color"),
    [
        (0, (0, 0, 0)),
        (1, (128, 0, 0)),
        (8, (64, 0, 0)),
        (12, (64, 0, 128)),
        (20, (0, 64, 128)),
        (255, (224, 224, 192)),
    ],
    ids=["background", "aeroplane", "cat", "dog", "tvmonitor", "void"],
)
def test_voc_color_is_that_of_the_development_kit(class_id, color):
    assert voc_color(class_id) == color


def test_voc_color_differs_for_every_id():
    assert len({voc_color(class_id) for class_id in range(256)}) == 256


def test_read_class_file_labels_alone_get_the_colours_of_pascal_voc(tmp_path):
    classes = read_class_file(
        written(tmp_path, "- background\n- label: cat\n- label: dog\n  color: [1, 2, 3]\n")
    ).classes
    assert [info.label for info in classes] == ["background", "cat", "dog"]
    assert [info.color for info in classes] == [(0, 0, 0), (128, 0, 0), (1, 2, 3)]


def test_class_file_categories_follow_from_and_ignore(tmp_path):
    text = "classes:\n- background\n- {label: vehicle, from: [car, bus]}\n- cat\nignore: [kite]\n"
    assert read_class_file(written(tmp_path, text)).categories == {
        "background": 0,
        "car": 1,
        "bus": 1,
        "cat": 2,
        "kite": 255,
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n", "classes: Tuple should have at least 2 items"),
        (
            "- a\n" + "".join(f"- c{number}\n" for number in range(255)),
            "classes: Tuple should have at most 255 items",
        ),
        ("- a\n- b\n- a\n", "label a is listed more than once"),
        (
            "- a\n- {label: b, from: [x]}\n- {label: c, from: [x]}\n",
            "category x is listed more than once",
        ),
        ("classes: [a, b]\nignore: [b]\n", "category b is listed more than once"),
        ("- a\n- {label: b, colour: [0, 0, 0]}\n", r"classes\.1\.colour: unknown key"),
        (
            "- a\n- {label: b, color: [0, 0, 256]}\n",
            r"classes\.1\.color\.2: .* less than or equal to 255",
        ),
        ("- a\n- no\n", r"classes\.1: "),
        ("- a\n- ' b'\n- 'c\td'\n", r"classes\.1\.label.*classes\.2\.label"),
        ("- a\n- [b]\n", r"classes\.1: "),
        ("names: [a, b]\n", "classes: is missing; names: unknown key"),
        ("just a text", "Value error, expected a list of classes"),
        ("", "Value error, expected a list of classes"),
        ("- [", "cannot be read"),
    ],
    ids=[
        *(
            "one",
            "too many",
            "repeated",
            "used twice",
            "used and ignored",
            "unknown key",
            "no colour",
            "boolean",
        ),
        *("labels", "list in list", "other keys", "text", "empty", "no YAML"),
    ],
)
def test_read_class_file_broken_rule_raises_and_is_named(tmp_path, text, message):
    with pytest.raises(DataError, match=rf"^classes\.yaml: (.*{message}|{message})"):
        read_class_file(written(tmp_path, text))


def test_read_class_file_missing_file_raises(tmp_path):
    with pytest.raises(DataError, match=r"classes\.yaml: cannot be read"):
        read_class_file(tmp_path / "classes.yaml")
