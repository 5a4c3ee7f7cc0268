"""Temperature scaling: the fit, the calibration error, and what the record and the served
confidences make of it.
"""

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from segserve.cli import app
from segserve.runtime.inference.labels import LabelRule, choose_labels
from segserve.runtime.inference.segmenter import Segmenter
from segserve.runtime.network import load_network
from segserve.runtime.record import Calibration, read_record, write_record
from segserve.training.calibration import (
    calibrate_model,
    expected_calibration_error,
    fit_temperature,
)
from segserve.training.data import IGNORED, VocFolder
from segserve.training.model_folder import export_weights

from .evaluated import write_noisy
from .tiny import write_tiny_model
from .voc import write_pair, write_split

KEEP = LabelRule(keep_confidence=True)


def ignore(_finished: int) -> None:
    pass


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_fit_temperature_finds_the_one_that_labels_were_drawn_with(temperature):
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(50_000, 5, generator=generator)
    labels = torch.multinomial((logits / temperature).softmax(1), 1, generator=generator)[:, 0]
    assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.03)


def test_expected_calibration_error_is_the_weighed_distance_over_bins():
    pixels, right = np.zeros(256, np.int64), np.zeros(256, np.int64)
    pixels[255], right[255] = 60, 48  # 1.0 confident, 0.8 right
    pixels[128], right[128] = 40, 30  # 0.502 confident, 0.75 right
    expected = (60 * 0.2 + 40 * (0.75 - 128 / 255)) / 100
    assert expected_calibration_error(pixels, right) == pytest.approx(expected)


def test_expected_calibration_error_of_levels_of_one_bin_cancels():
    pixels, right = np.zeros(256, np.int64), np.zeros(256, np.int64)
    pixels[[254, 255]], right[[254, 255]] = 10, [10, 9]
    assert expected_calibration_error(pixels, right) == pytest.approx(
        abs(10 * 254 / 255 + 10 - 19) / 20
    )


def test_expected_calibration_error_of_no_pixel_raises():
    with pytest.raises(ValueError, match="no pixel is labelled"):
        expected_calibration_error(np.zeros(256, np.int64), np.zeros(256, np.int64))


# What a temperature does


@pytest.fixture
def logits():
    return 3 * torch.randn(6, 9, 11, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("temperature", [0.37, 1.7, 9.0])
@pytest.mark.parametrize("size_hw", [(90, 110), (37, 41), (9, 11)])
def test_choose_labels_temperature_changes_no_label(logits, temperature, size_hw):
    plain, scaled = (
        choose_labels(logits, *size_hw, KEEP, temperature=t) for t in (1.0, temperature)
    )
    assert np.array_equal(plain.label_map, scaled.label_map)
    assert not np.array_equal(plain.confidence_map, scaled.confidence_map)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_choose_labels_confidence_is_the_softmax_of_the_divided_logits(logits, temperature):
    scaled = choose_labels(logits, 9, 11, KEEP, temperature=temperature)
    expected = 255 * (logits / temperature).softmax(0).amax(0)
    assert (
        np.abs(scaled.confidence_map - expected.numpy()).max() <= 1.5
    )  # negligible classes are summed up
    assert scaled.quality.confidence == pytest.approx(
        (logits / temperature).softmax(0).amax(0).mean().item(), rel=1e-4
    )


def test_choose_labels_threshold_acts_on_the_divided_logits():
    logits = torch.tensor([0.0, 1.0]).view(2, 1, 1)  # 0.73 at temperature 1, 0.62 at 2
    assert choose_labels(logits, 3, 3, LabelRule(threshold=0.7)).label_map.all()
    assert not choose_labels(
        logits, 3, 3, LabelRule(threshold=0.7), temperature=2.0
    ).label_map.any()


def test_segmenter_takes_the_temperature_of_the_record(tmp_path):
    record = read_record(write_tiny_model(tmp_path))
    network = load_network(record, tmp_path)
    found = Calibration(temperature=4, dataset="some", images=2, ece_before=0.2, ece=0.1)
    image_rgb = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    plain, calibrated = (
        Segmenter.of(network, used).segment(image_rgb, rule=KEEP)
        for used in (record, record.model_copy(update={"calibration": found}))
    )
    assert np.array_equal(plain.label_map, calibrated.label_map)
    assert calibrated.confidence_map.mean() < plain.confidence_map.mean()


# The command


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    return write_tiny_model(folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_noisy(tmp_path_factory.mktemp("noisy"), images=6).folder


def test_calibrate_writes_the_record_and_lowers_the_error(model, data):
    accuracy = read_record(model)
    result = CliRunner().invoke(app, ["calibrate", str(model), "--data", str(data)])
    assert result.exit_code == 0, result.stderr
    found = read_record(model).calibration
    assert (
        f"temperature {found.temperature:g}; expected calibration error {found.ece_before:.4f}"
        in result.stdout
    )
    assert found.dataset == f"{data.name} dev"
    assert found.images == 6
    assert (
        found.ece < found.ece_before
    )  # a network with random weights is sure of what it does not know
    assert read_record(model).model_copy(update={"calibration": None}) == accuracy


def test_calibrate_again_gives_the_same(model, data):
    first = calibrate_model(model, VocFolder(data, "dev"), ignore, dataset="noisy dev")
    assert calibrate_model(model, VocFolder(data, "dev"), ignore, dataset="noisy dev") == first


@pytest.mark.parametrize(
    ("images", "value", "message"),
    [
        pytest.param(1, 1, "calibration needs at least two images, got 1", id="one image"),
        pytest.param(2, IGNORED, "the split has no foreground pixel", id="all ignored"),
    ],
)
def test_calibrate_on_too_little_is_one_line_and_writes_nothing(
    model, tmp_path, images, value, message
):
    names = [f"p{n}" for n in range(images)]
    for name in names:
        write_pair(
            tmp_path, name, np.zeros((32, 32, 3), np.uint8), np.full((32, 32), value, np.uint8)
        )
    write_split(tmp_path, "dev", names)
    before = read_record(model)
    result = CliRunner().invoke(app, ["calibrate", str(model), "--data", str(tmp_path)])
    assert result.exit_code == 1
    assert message in result.stderr.splitlines()[-1]
    assert read_record(model) == before


def test_record_calibration_is_dropped_with_new_weights(model):
    found = Calibration(temperature=2, dataset="some", images=2, ece_before=0.2, ece=0.1)
    write_record(read_record(model).model_copy(update={"calibration": found}), model)
    export_weights(load_network(read_record(model), model), read_record(model), model)
    assert read_record(model).calibration is None
    assert read_record(model).temperature == 1
