"""Random flags and damaged files: every command about models and data ends with a result or with
an error message, never with a traceback.
"""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from segserve.cli import app
from segserve.runtime.network import load_network
from segserve.runtime.record import read_record

from .coco import CAT, annotation, square, write_coco
from .tiny import write_tiny_model
from .voc import write_squares

pytestmark = pytest.mark.slow

ROUNDS = 24
FLAGS = {
    "--split": [
        "train",
        "dev",
        "no",
        "{data}/train.txt",
        "{coco}/annotations/instances_train.json",
    ],
    "--images": ["{coco}/train", "{data}/images", "no"],
    "--ignore-id": ["none", "0", "254", "-1", "x"],
    "--crowds": ["objects", "ignore", "x"],
    "--skip-broken": [None],
}
OWN = {
    "evaluate": {
        "--mode": ["slide", "x"],
        "--tta": ["flip"],
        "--precision": ["bf16", "int8"],
        "--page": ["{tmp}/page.html", "{tmp}"],
        "--write": [None],
    },
    "train": {
        "--val": ["train", "dev", "no"],
        "--classes": ["{tmp}/classes.yaml", "no"],
        "--backbone": ["test_efficientnet", "torchvision.resnet50", "no"],
        "--backbone-weights": ["{tmp}/weights.pth", "torchvision", "no"],
        "--start": ["model", "{model}", "no"],
        "--crop-px": ["32", "1"],
        "--aspp-rates": ["1,2", "x", "0"],
    },
    "calibrate": {},
    "data check": {"--classes": ["{tmp}/classes.yaml"], "--sheet": ["{tmp}/s.png", "{tmp}"]},
    "compare": {"--no-worse-than": ["0", "-1"]},
}


@pytest.fixture
def places(tmp_path):
    """Files of all kinds by name: a data set, COCO, a model, a checkpoint, a class file."""
    places = {name: tmp_path / name for name in ("data", "coco", "model")}
    write_squares(places["data"], images=3)
    shutil.copy(places["data"] / "train.txt", places["data"] / "dev.txt")
    write_coco(places["coco"], [annotation(square(0, 0, 9), CAT)])
    places["model"].mkdir()
    write_tiny_model(places["model"])
    state = load_network(read_record(places["model"]), places["model"]).state_dict()
    torch.save(state, tmp_path / "weights.pth")
    (tmp_path / "classes.yaml").write_text("- background\n- cat\n- dog\n")
    return {**places, "tmp": tmp_path}


def damage(places, random):
    """Changes, cuts or removes a few files."""
    files = sorted(path for path in places["tmp"].rglob("*") if path.is_file())
    for path in random.choice(files, random.integers(1, 3)):
        content = bytearray(path.read_bytes())
        match random.integers(4):
            case 0 if content:
                for place in random.integers(len(content), size=8):
                    content[place] = random.integers(256)
                path.write_bytes(content)
            case 1:
                path.write_bytes(content[: random.integers(len(content) + 1)])
            case 2:
                path.unlink(missing_ok=True)
            case _:
                path.write_bytes(random.bytes(200))


def command_line(command, places, random):
    data = random.choice(["data", "coco"])
    positional = {
        "evaluate": [places["model"]],
        "compare": [places["model"], places["model"]],
        "train": [places["tmp"] / "new" if random.random() < 0.6 else places["model"]],
        "calibrate": [places["model"]],
        "data check": [places[data]],
    }[command]
    own = dict(OWN[command])
    line = [*command.split(), *positional]
    if command != "data check":
        line += ["--data", places[data]]
    if command == "train":
        line += ["--steps", 1, "--batch-size", 2, "--run", places["tmp"] / "run", "--workers", 0]
    flags = {**FLAGS, **own}
    for flag in random.permutation(sorted(flags))[: random.integers(1, 5)]:
        value = random.choice(np.array(flags[str(flag)], dtype=object))
        line += [flag] if value is None else [flag, value.format(**places)]
    return [str(part) for part in line]


@pytest.mark.parametrize("command", OWN)
@pytest.mark.parametrize("seed", range(ROUNDS))
def test_command_with_random_flags_and_damaged_files_never_shows_a_traceback(
    places, command, seed, monkeypatch
):
    random = np.random.default_rng((seed, len(command)))
    monkeypatch.chdir(places["tmp"])
    monkeypatch.setenv("SEGSERVE_HOME", str(places["tmp"] / "home"))
    if seed % 2:
        damage(places, random)
    line = command_line(command, places, random)
    result = CliRunner().invoke(app, line)
    assert result.exception is None or isinstance(result.exception, SystemExit), line
    assert result.exit_code in (0, 1, 2), line
    assert "Traceback" not in result.stderr, line
    assert result.exit_code == 0 or result.stderr.strip(), line


IMPORTED = {
    "--classes": ["background,a,b", "a", "{tmp}/classes.yaml", ""],
    "--size-px": ["96", "1"],
    "--mean": ["0.5,0.5,0.5", "1", "a,b,c", "9,9,9"],
    "--std": ["0.5,0.5,0.5", "0,0,0"],
    "--backbone": ["resnet18", "no", "test_efficientnet"],
    "--output-stride": ["8", "5"],
    "--aspp-rates": ["1,2", "x"],
    "--image": ["{data}/images/square0.jpg", "{data}/train.txt"],
    "--compare": ["{tmp}/a.npy"],
    "--data": ["{data}"],
}


@pytest.mark.parametrize("seed", range(2 * ROUNDS))
def test_import_of_damaged_checkpoints_never_shows_a_traceback(places, seed, monkeypatch):
    random = np.random.default_rng(seed)
    monkeypatch.chdir(places["tmp"])
    tmp = places["tmp"]
    np.save(tmp / "a.npy", np.zeros((64, 64), np.uint8))
    folder = tmp / "saved"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"encoder_name": "tu-no", "classes": 3}))
    shutil.copy(places["model"] / "weights.safetensors", folder / "model.safetensors")
    Image.new("RGB", (8, 8)).save(tmp / "picture.png")
    if seed % 2:
        damage(places, random)
    sources = ["weights.pth", "saved", "picture.png", "no.pth", "data", "model/weights.safetensors"]
    line = ["import", str(tmp / str(random.choice(sources))), "-o", str(tmp / "new")]
    for flag in random.permutation(sorted(IMPORTED))[: random.integers(0, 8)]:
        value = random.choice(np.array(IMPORTED[str(flag)], dtype=object))
        line += [str(flag), value.format(**places)]
    result = CliRunner().invoke(app, line)
    assert result.exception is None or isinstance(result.exception, SystemExit), line
    assert result.exit_code in (0, 1, 2), line
    assert result.exit_code == 0 or result.stderr.strip(), line
    assert (tmp / "new").exists() == (result.exit_code == 0), line
