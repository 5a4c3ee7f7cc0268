"""The command `segserve quantize`."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from segserve.cli import app
from segserve.runtime.acceleration.openvino_model import RANGES_FILE
from segserve.runtime.network import load_network
from segserve.runtime.record import read_record

from .tiny import write_tiny_model


@pytest.fixture
def model(tmp_path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    return write_tiny_model(folder)


@pytest.fixture
def pictures(tmp_path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(5):
        pixels = np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((80, 60)).save(folder / f"{number}.png")
    return folder


def quantize(*arguments: object):
    return CliRunner().invoke(app, ["quantize", *map(str, arguments)])


def error_line(*arguments: object) -> str:
    """The single error line of a command that fails."""
    result = quantize(*arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("segserve: ")]
    assert "Traceback" not in result.stderr
    return line


def test_quantize_names_the_ranges_in_the_record_and_says_what_follows(model, pictures):
    result = quantize(model, pictures, "--most", 3)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith(f"{model}: a CPU with VNNI now computes it in int8")
    assert "3/3" in result.stderr
    record = read_record(model)
    assert record.int8 is not None
    ranges = load_network(record, model).ranges
    assert "head.4" in ranges
    assert all(least <= 0 <= largest for least, largest in ranges.values())


def test_quantize_again_gives_the_same_file(model, pictures):
    assert quantize(model, pictures).exit_code == 0
    content = (model / RANGES_FILE).read_bytes()
    assert quantize(model, pictures).exit_code == 0
    assert (model / RANGES_FILE).read_bytes() == content


def test_quantize_broken_image_is_named_and_nothing_is_written(model, pictures):
    (pictures / "broken.png").write_bytes(b"no image")
    assert f"{pictures}/broken.png: not an image" in error_line(model, pictures)
    assert read_record(model).int8 is None
    assert not (model / RANGES_FILE).exists()


def test_quantize_folder_without_images_is_an_error(model, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "no images" in error_line(model, tmp_path / "empty")


def test_quantize_unknown_model_is_an_error(pictures):
    assert "'unknown': no model folder" in error_line("unknown", pictures)


def test_quantize_a_model_without_large_convolutions_is_an_error_and_writes_nothing(
    model, pictures, monkeypatch
):
    monkeypatch.setattr("segserve.runtime.acceleration.openvino_model.LEAST_WEIGHTS", 2**30)
    line = error_line(model, pictures)
    assert "tiny does not support int8: ValueError: no convolution has 1073741824 weights" in line
    assert not (model / RANGES_FILE).exists()
    assert read_record(model).int8 is None
