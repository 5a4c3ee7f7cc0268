"""`segserve compare`: two models on the same images."""

import numpy as np
import pytest
from typer.testing import CliRunner

from segserve.cli import app
from segserve.runtime.errors import ModelError
from segserve.schema.request import Options
from segserve.training.compare import compare
from segserve.training.data import VocFolder
from segserve.training.measure import Predictor

from .images import noise
from .tiny import tiny_record, write_tiny_model
from .voc import write_pair, write_split

TRUTH = [np.array([[0, 0, 1, 1], [0, 0, 1, 255]], np.uint8), np.array([[2, 2, 0, 0]], np.uint8)]


@pytest.fixture
def data(tmp_path):
    for n, labels in enumerate(TRUTH):
        write_pair(tmp_path / "data", f"p{n}", noise(*labels.shape, n), labels)
    write_split(tmp_path / "data", "dev", ["p0", "p1"])
    return VocFolder(tmp_path / "data", "dev")


def predictor(*maps, **changes):
    given = {f"p{n}": np.array(label_map, np.uint8) for n, label_map in enumerate(maps)}
    return Predictor(tiny_record(**changes), lambda name, _pixels: given[name], 1, Options())


RIGHT = predictor([[0, 0, 1, 1], [0, 0, 1, 1]], TRUTH[1])
WRONG = predictor([[0, 0, 1, 0], [0, 0, 1, 0]], TRUTH[1])


def test_compare_counts_by_hand(data):
    found = compare(data, RIGHT, WRONG)
    cat = found.classes[1]
    assert (cat.label, cat.first, cat.second) == ("cat", 1.0, pytest.approx(2 / 3))
    assert cat.difference == pytest.approx(-1 / 3)
    background = found.classes[0]
    assert (background.first, background.second) == (1.0, pytest.approx(6 / 7))
    assert found.mean.difference == pytest.approx((-1 / 3 - 1 / 7) / 3)
    # the ignored pixel differs too, and is not counted
    assert found.changed_share == pytest.approx(1 / 11)


def test_compare_of_the_same_model_finds_no_difference(data):
    found = compare(data, RIGHT, RIGHT)
    for row in (*found.classes, found.mean):
        assert (row.difference, row.low, row.high) == (0, 0, 0)
    assert found.changed_share == 0


def test_compare_intervals_contain_the_difference_and_are_the_same_each_time(data):
    first, second = compare(data, RIGHT, WRONG), compare(data, RIGHT, WRONG)
    assert first == second
    for row in (*first.classes, first.mean):
        assert row.low <= row.difference <= row.high
    assert first.mean.low < first.mean.high


def test_compare_samples_without_a_class_do_not_count(tmp_path):
    """A cat in one of ten images, of which the second model sees half. Both see cats elsewhere."""
    maps = [np.full((4, 4), n == 9, np.uint8) for n in range(10)]
    for n, labels in enumerate(maps):
        write_pair(tmp_path, f"p{n}", noise(4, 4, n), labels)
    write_split(tmp_path, "dev", [f"p{n}" for n in range(10)])
    first = [labels.copy() for labels in maps]
    for labels in first[:9]:
        labels[0, 0] = 1
    second = [*first[:9], first[9] * np.array([1, 1, 0, 0], np.uint8)]
    found = compare(VocFolder(tmp_path, "dev"), predictor(*first), predictor(*second))
    assert found.classes[1].difference == pytest.approx((8 - 16) / 25)
    assert found.classes[1].high < 0  # the second model is worse in every sample with a cat


def test_compare_models_with_other_classes_raises(data):
    other = predictor(*TRUTH, classes=tiny_record().classes[:2])
    with pytest.raises(ModelError, match="different classes"):
        compare(data, RIGHT, other)


@pytest.fixture
def models(tmp_path):
    folders = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        folders.append(write_tiny_model(tmp_path / name))
    return folders


def run(*command):
    return CliRunner().invoke(app, [*map(str, command)])


def test_compare_command_prints_differences(models, data):
    result = run("compare", *models, "--data", data.folder)
    assert result.exit_code == 0, result.stderr
    assert "+0.000 to +0.000" in result.stdout
    assert "0.00% of the labelled pixels have another class" in result.stdout


@pytest.mark.parametrize(("limit", "status"), [("0", 1), ("1", 0)], ids=["strict", "lenient"])
def test_compare_command_ends_with_1_if_the_second_is_worse(
    tmp_path, models, data, monkeypatch, limit, status
):
    maps = iter([RIGHT, WRONG])

    class Opened:
        def __enter__(self):
            return next(maps)

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(
        "segserve.training.measure.offline_model", lambda *_args, **_options: Opened()
    )
    result = run("compare", *models, "--data", data.folder, "--no-worse-than", limit)
    assert result.exit_code == status
    assert ("is worse by 0.1587" in result.stderr) == bool(status)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("http://127.0.0.1:9", "embedded"), "give the server second"),
        (("embedded", "no-such"), "no-such"),
    ],
    ids=["server first", "unknown"],
)
def test_compare_command_reports_wrong_arguments_in_one_line(data, command, message):
    result = run("compare", *command, "--data", data.folder)
    assert result.exit_code == 1
    assert message in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
