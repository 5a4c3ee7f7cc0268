"""`segserve train MODEL --start OTHER`: another model's weights, and a classifier of one's own."""

import re

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from segserve.cli import app
from segserve.recipe import FINE_TUNING, Recipe
from segserve.runtime.network import build_network, load_network
from segserve.runtime.record import Architecture, read_document, read_record
from segserve.training.model_folder import export_weights, load_start

from .tiny import tiny_record, write_tiny_model
from .voc import write_pair, write_split

pytestmark = pytest.mark.slow

CLASSES = "- background\n- disc\n- box\n- ring\n"


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    for n in range(4):
        labels = np.zeros((64, 64), np.uint8)
        labels[8:40, 8:40] = n % 3 + 1
        image = np.full((64, 64, 3), 40 * n, np.uint8)
        image[labels > 0] = 250
        write_pair(folder, f"p{n}", image, labels)
    write_split(folder, "train", [f"p{n}" for n in range(4)])
    (folder / "classes.yaml").write_text(CLASSES)
    return folder


@pytest.fixture
def other(tmp_path):
    (tmp_path / "other").mkdir()
    return write_tiny_model(tmp_path / "other")


def run(folder, *more):
    command = ["train", folder / "new", "--data", folder / "data", "--run", folder / "run", *more]
    return CliRunner().invoke(app, [*map(str, command)])


def test_start_from_another_model_keeps_all_but_the_classifier(tmp_path, data, other):
    flags = "--steps", 1, "--backbone-lr", 1e-12, "--head-lr", 1e-12
    classes = "--classes", data / "classes.yaml"
    result = run(tmp_path, "--start", other, *classes, *flags)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith(f"starts from the weights of {other}"[:60])
    record = read_record(tmp_path / "new")
    assert record.labels == ("background", "disc", "box", "ring")
    assert record.architecture == read_record(other).architecture
    assert record.input == read_record(other).input
    own = load_network(record, tmp_path / "new").state_dict()
    given = load_network(read_record(other), other).state_dict()
    differing = [name for name in own if own[name].shape != given[name].shape]
    assert differing == ["head.4.weight", "head.4.bias"]
    for name in own.keys() - set(differing):
        torch.testing.assert_close(own[name], given[name], atol=1e-3, rtol=1e-3)


def test_start_from_another_model_with_its_classes_keeps_the_classifier_too(tmp_path, data, other):
    (data / "labels" / "p2.png").write_bytes((data / "labels" / "p0.png").read_bytes())
    flags = "--steps", 1, "--backbone-lr", 1e-12, "--head-lr", 1e-12
    result = run(tmp_path, "--start", other, *flags)
    assert result.exit_code == 0, result.stderr
    record = read_record(tmp_path / "new")
    assert record.classes == read_record(other).classes
    own = load_network(record, tmp_path / "new").state_dict()
    given = load_network(read_record(other), other).state_dict()
    torch.testing.assert_close(own["head.4.weight"], given["head.4.weight"], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("head", ["deeplabv3", "corenet", "multiscale", "deeplabv3plus"])
def test_load_start_as_many_other_classes_get_a_random_classifier(tmp_path, head):
    architecture = Architecture(backbone="test_efficientnet", head=head, aspp_out_channels=8)
    given = tiny_record(architecture=architecture)
    record = export_weights(build_network(architecture, 3), given, tmp_path)
    start = load_network(record, tmp_path).state_dict()
    renamed = (*given.classes[:2], given.classes[2].model_copy(update={"label": "fox"}))
    network = build_network(architecture, 3)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    load_start(network, given.model_copy(update={"classes": renamed}), tmp_path)
    own = network.state_dict()
    classifier = [name for name in own if own[name].shape[:1] == (3,)]
    assert len(classifier) == 2
    for name in own:
        assert torch.equal(own[name], (before if name in classifier else start)[name])


def test_start_from_another_model_writes_a_gentle_recipe(tmp_path, data, other):
    run(tmp_path, "--start", other, "--classes", data / "classes.yaml", "--steps", 1)
    recipe = read_document(tmp_path / "new/recipe.yaml", Recipe)
    assert recipe.start == str(other)
    assert (recipe.image_px, recipe.crop_px) == (64, 64)
    for name, value in FINE_TUNING.items():
        assert getattr(recipe, name) == (1 if name == "steps" else value)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--start", "no-such-model"), "no-such-model"),
        (("--backbone", "resnet18"), "leave out --backbone"),
    ],
    ids=["unknown", "architecture"],
)
def test_start_that_cannot_be_used_is_one_line_and_writes_nothing(
    tmp_path, data, other, more, message
):
    start = () if "--start" in more else ("--start", other)
    result = run(tmp_path, *start, "--classes", data / "classes.yaml", *more)
    assert result.exit_code == 1
    [line] = result.stderr.strip().splitlines()
    assert message in line
    assert not (tmp_path / "new").exists()


def test_train_of_random_weights_says_so(tmp_path, data):
    more = "--classes", data / "classes.yaml", "--backbone", "test_efficientnet", "--steps", 1
    result = run(tmp_path, *more, "--size-px", 64, "--crop-px", 64, "--batch-size", 2)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("starts from random weights")
    assert "--start embedded" in result.stdout


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ("--backbone", "torchvision.resnet50", "--backbone-weights", "timm"),
            "weights torchvision",
        ),
        (
            ("--backbone", "resnet18", "--backbone-weights", "no.pth"),
            "no.pth: there is no such file",
        ),
        (("--backbone", "resnet18", "--backbone-weights", "torchvision"), "weights timm"),
    ],
    ids=["timm", "file", "torchvision"],
)
def test_backbone_weights_that_cannot_be_had_are_one_line(tmp_path, data, more, message):
    result = run(tmp_path, "--classes", data / "classes.yaml", "--steps", 1, *more)
    assert result.exit_code == 1
    assert message in result.stderr.strip().splitlines()[-1]
    assert "Traceback" not in result.stderr


def test_fine_tuning_the_embedded_model_learns_new_classes(tmp_path):
    """Red discs and blue boxes on photographs, from 12 images."""
    from skimage import data as photographs

    rng = np.random.default_rng(0)
    backgrounds = (photographs.chelsea(), photographs.coffee(), photographs.astronaut())
    rows, columns = np.mgrid[:96, :96]
    names = []
    for n in range(18):
        photograph = backgrounds[n % 3]
        top, left = rng.integers(0, 200, 2)
        image = photograph[top : top + 96, left : left + 96].copy()
        labels = np.zeros((96, 96), np.uint8)
        y, x = rng.integers(20, 76, 2)
        disc = (rows - y) ** 2 + (columns - x) ** 2 < 16**2
        image[disc], labels[disc] = (220, 40, 40), 1
        y, x = rng.integers(4, 60, 2)
        box = (rows >= y) & (rows < y + 28) & (columns >= x) & (columns < x + 28)
        image[box], labels[box] = (40, 40, 220), 2
        write_pair(tmp_path / "data", f"p{n}", image, labels)
        names.append(f"p{n}")
    write_split(tmp_path / "data", "train", names[:12])
    write_split(tmp_path / "data", "dev", names[12:])
    (tmp_path / "classes.yaml").write_text("- background\n- disc\n- box\n")
    rates = "--head-lr", 0.003, "--backbone-lr", 0.0003, "--loss-stride", 1, "--steps", 100
    flags = "--classes", tmp_path / "classes.yaml", "--size-px", 96, *rates, "--val", "dev"
    result = run(tmp_path, "--start", "embedded", *flags)
    assert result.exit_code == 0, result.stderr
    found = re.search(r"mean IoU ([\d.]+) on dev", result.stdout)
    assert float(found[1]) > 0.6
