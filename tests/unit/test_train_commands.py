"""Bad data is reported in one line, before the first step, by all commands that read data sets."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from segserve.cli import app
from segserve.runtime.record import Calibration, ClassInfo, read_record, write_record

from .coco import CAT, DOG, annotation, square, write_coco
from .tiny import tiny_record, write_tiny_model
from .voc import write_pair, write_squares

COMMANDS = ("train", "evaluate", "calibrate", "import")
CLASSES = "- background\n- cat\n- dog\n"


@pytest.fixture
def data(tmp_path):
    """Splits `train` and `dev` of the same squares."""
    folder = write_squares(tmp_path / "data", images=3)
    (folder / "dev.txt").write_text((folder / "train.txt").read_text())
    return folder


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    return write_tiny_model(folder)


def arguments(command, model, data, *more):
    first = {
        "import": ["import", "model.tflite", "-o", model],
        "evaluate": ["evaluate", model],
    }
    steps = ["--steps", "1", "--start", "model"] if command == "train" else []
    return [*first.get(command, [command, model]), "--data", data, *steps, *more]


def run(*command):
    return CliRunner().invoke(app, [*map(str, command)])


def error_line(*command):
    """The single error line of a command that fails."""
    result = run(*command)
    assert (result.exit_code, result.stdout) == (1, "")
    [line] = [line for line in result.stderr.splitlines() if line.startswith("segserve: ")]
    return line


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def remove_split(data):
    for name in ("train", "dev"):
        (data / f"{name}.txt").unlink()
    (data / "other.txt").write_text("square0\n")


def shrink_mask(data):
    Image.fromarray(np.zeros((10, 12), np.uint8)).save(data / "labels" / "square1.png")


def break_image(data):
    path = data / "images" / "square1.jpg"
    path.write_bytes(path.read_bytes()[:300])


def remove_foreground(data):
    for path in (data / "labels").iterdir():
        Image.fromarray(np.zeros((64, 64), np.uint8)).save(path)


FAULTS = {
    "no such split": (remove_split, "there is no such split list"),
    "mask of another size": (shrink_mask, "square1.png: the label map has 12 x 10 pixels, but"),
    "broken image": (break_image, "square1.jpg: "),
    "no foreground": (remove_foreground, "the split has no foreground pixel"),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(("spoil", "message"), FAULTS.values(), ids=FAULTS)
def test_bad_data_is_one_line_and_the_model_folder_stays(
    command, spoil, message, data, model, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    spoil(data)
    before = contents(model)
    assert message in error_line(*arguments(command, model, data))
    assert contents(model) == before
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("spoil", "message"), FAULTS.values(), ids=FAULTS)
def test_train_new_model_with_bad_data_creates_no_folder(spoil, message, data, tmp_path):
    spoil(data)
    (tmp_path / "classes.yaml").write_text(CLASSES)
    flags = "--classes", tmp_path / "classes.yaml", "--backbone", "test_efficientnet", "--steps", 1
    assert message in error_line("train", tmp_path / "new", "--data", data, *flags)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("val", ["missing", "spoilt"])
def test_train_bad_validation_split_is_reported_before_training(data, model, val):
    write_pair(data, "dark", np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.uint8))
    (data / "spoilt.txt").write_text("dark\n")
    before = contents(model)
    assert f"{val}.txt: " in error_line(*arguments("train", model, data, "--val", val))
    assert contents(model) == before


# The categories of the class file

MAPPED = "- background\n- label: animal\n  from: [cat, dog]\n"
SMALL = (
    "--steps", 1, "--batch-size", 1, "--image-px", 64, "--crop-px", 64, "--precision", "fp32",
    "--workers", 0,
)  # fmt: skip


@pytest.fixture
def mapped(tmp_path, monkeypatch):
    """A model that was trained with `MAPPED`, and the flags that name data with its categories."""
    monkeypatch.chdir(tmp_path)
    folder, animals = tmp_path / "mapped", ClassInfo(label="animal", color=(1, 2, 3))
    folder.mkdir()
    write_tiny_model(folder, classes=(tiny_record().classes[0], animals))
    (folder / "classes.yaml").write_text(MAPPED)
    drawn = [annotation(square(0, 0, 20), kind, image) for image, kind in ((1, CAT), (2, DOG))]
    path = write_coco(tmp_path / "coco", drawn, count=2)
    return folder, ("--data", path, "--images", tmp_path / "coco" / "train")


def test_train_keeps_a_class_file_that_names_categories(mapped, tmp_path):
    (tmp_path / "own.yaml").write_text(MAPPED)
    flags = "--classes", "own.yaml", "--backbone", "test_efficientnet", *SMALL
    result = run("train", "new", *mapped[1], *flags)
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "new/classes.yaml").read_text() == MAPPED


def test_train_keeps_no_class_file_without_categories(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.yaml").write_text(CLASSES)
    flags = "--classes", "own.yaml", "--backbone", "test_efficientnet", *SMALL
    result = run("train", "plain", "--data", data, *flags)
    assert result.exit_code == 0, result.stderr
    assert not (tmp_path / "plain/classes.yaml").exists()


@pytest.mark.parametrize(
    ("command", "output"),
    [
        (lambda model, data: ("evaluate", model, "--data", *data), "animal"),
        (lambda model, data: ("calibrate", model, "--data", *data), "temperature"),
        (lambda model, data: ("compare", model, model, "--data", *data), "animal"),
        (lambda model, data: ("data", "check", *data, "--model", model), "animal"),
    ],
    ids=["evaluate", "calibrate", "compare", "check"],
)
def test_commands_use_the_categories_that_the_model_was_trained_with(mapped, command, output):
    model, names = mapped
    result = run(*command(model, names[1:]))
    assert result.exit_code == 0, result.stderr
    assert output in result.stdout


def test_train_second_stage_and_start_use_the_categories_of_the_first(mapped, tmp_path):
    model, names = mapped
    more = "--recipe", "second.yaml", "--start", "model"
    result = run("train", model, *names, *SMALL, *more)
    assert result.exit_code == 0, result.stderr
    result = run("train", "next", *names, *SMALL, "--start", model)
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "next/classes.yaml").read_text() == MAPPED


def test_evaluate_class_file_of_other_classes_is_an_error(mapped):
    model, names = mapped
    (model / "classes.yaml").write_text(CLASSES)
    line = error_line("evaluate", model, *names)
    assert "classes.yaml: its classes are not those of model.yaml" in line


# What a run finds


def test_train_finished_run_says_so(data, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = "train", model, "--data", data, "--start", "model", *SMALL
    assert "model is ready" in run(*command).stdout
    calibration = Calibration(temperature=2, dataset="some", images=2, ece_before=0.2, ece=0.1)
    write_record(read_record(model).model_copy(update={"calibration": calibration}), model)
    before = contents(model)
    again = run(*command)
    assert again.exit_code == 0, again.stderr
    assert again.stdout.startswith(f"the run in {Path('runs/model/recipe')} was finished before")
    assert "is ready" not in again.stdout
    assert "1/1" in again.stderr
    assert "0/1" not in again.stderr
    assert contents(model) == before


def test_train_size_or_licence_of_an_existing_model_is_an_error(data, model):
    before = contents(model)
    flags = "--size-px", "96", "--licence", "MIT"
    line = error_line(*arguments("train", model, data, *flags))
    assert "model.yaml does not agree with --size-px, --licence: leave that out" in line
    assert contents(model) == before


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--backbone-weights", "typo.pth"), "typo.pth: there is no such file"),
        (("--start-share", "0.5"), "start_share is 0.5"),
        (("--start", "model"), "the record names no weights"),
    ],
    ids=["weights", "recipe", "start"],
)
def test_train_new_model_that_cannot_start_leaves_no_folder(
    data, tmp_path, monkeypatch, more, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.yaml").write_text(CLASSES)
    flags = "--classes", "own.yaml", "--backbone", "test_efficientnet", *SMALL
    assert message in error_line("train", "new", "--data", data, *flags, *more)
    assert not (tmp_path / "new").exists()


# --data is a COCO JSON file


@pytest.fixture
def coco(tmp_path):
    """`instances_train.json` with a cat, `instances_dev.json` with a dog, and their images."""
    folder = tmp_path / "coco"
    train = write_coco(folder, [annotation(square(0, 0, 20), CAT)])
    dev = write_coco(folder, [annotation(square(0, 0, 20), DOG)], name="instances_dev")
    return folder, train, dev


@pytest.mark.parametrize("command", COMMANDS)
def test_split_name_with_a_json_file_as_data_is_an_error(command, coco, model):
    folder, train, _ = coco
    line = error_line(*arguments(command, model, train, "--split", "dev", "--images", folder))
    assert "instances_train.json: is the file of one split, so it has no split dev" in line


def test_train_val_name_with_a_json_file_as_data_is_an_error(coco, model):
    folder, train, _ = coco
    line = error_line(
        *arguments("train", model, train, "--val", "dev", "--images", folder / "train")
    )
    assert "is the file of one split, so it has no split dev: give the JSON file of that" in line


@pytest.mark.parametrize("split", [False, True], ids=["the file alone", "another file"])
def test_evaluate_json_file_measures_the_split_that_is_named(coco, model, tmp_path, split):
    folder, train, dev = coco
    named = ("--split", dev) if split else ()
    output = "--json", tmp_path / "report.json", "--images", folder / "train"
    result = run(*arguments("evaluate", model, train, *named, *output))
    assert result.exit_code == 0, result.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["split"] == ("dev" if split else "train")
    assert [row["label"] for row in report["classes"] if row["images"]] == [
        "background",
        "dog" if split else "cat",
    ]


def test_train_json_files_for_split_and_val_measures_on_val(coco, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder, train, dev = coco
    model = tmp_path / "new"
    model.mkdir()
    write_record(tiny_record(), model)
    flags = (
        "--steps",
        1,
        "--batch-size",
        1,
        "--image-px",
        64,
        "--crop-px",
        64,
        "--precision",
        "fp32",
    )
    result = run(
        "train", model, "--data", train, "--val", dev, "--images", folder / "train", *flags,
        "--workers", 0, "--precision", "fp32",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    card = (model / "README.md").read_text()
    assert "On coco dev (1 images)" in card
    assert "| dog |" in card
    assert "| cat |" not in card
    assert "Written by `segserve train`; edit" in card
