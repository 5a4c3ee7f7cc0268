"""The command `segserve evaluate`."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from segserve.cli import app
from segserve.runtime.record import read_record
from segserve.training.report import EvaluationReport, as_accuracy

from .tiny import write_tiny_model
from .voc import write_pair, write_squares


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = write_squares(tmp_path_factory.mktemp("squares"), images=4)
    (folder / "dev.txt").write_text((folder / "train.txt").read_text())
    return folder


def evaluate(*arguments: object):
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])


def error_line(*arguments: object) -> str:
    """The single error line of a command that fails."""
    result = evaluate(*arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    lines = [line for line in result.stderr.splitlines() if line.startswith("segserve: ")]
    assert len(lines) == 1
    assert "Traceback" not in result.stderr
    return lines[0]


def test_evaluate_prints_figures_and_writes_document_and_page(data, tiny_model, tmp_path):
    document, page = tmp_path / "new" / "figures.json", tmp_path / "page.html"
    result = evaluate(
        tiny_model, "--data", data, "--split", "dev", "--min-images", 2, "--json", document, "--page", page,  # noqa: E501
        "--worst", 3,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    report = EvaluationReport.model_validate_json(document.read_text())
    assert (report.model, report.data, report.split, report.images) == ("tiny", data.name, "dev", 4)
    assert f"mean IoU {report.mean_iou:.4f} over the 3 classes present" in result.stdout
    assert f"{report.covered.mean_iou:.4f} over the 3 in at least 2 images" in result.stdout
    assert f"pixel accuracy {report.pixel_accuracy:.4f}" in result.stdout
    assert page.read_text().count("<article>") == 3


def test_evaluate_reads_the_published_layout_of_pascal_voc(tiny_model, tmp_path):
    folder = tmp_path / "VOCdevkit" / "VOC2012"
    squares = write_squares(tmp_path / "squares", images=3)
    (folder / "ImageSets" / "Segmentation").mkdir(parents=True)
    (squares / "images").rename(folder / "JPEGImages")
    (squares / "train.txt").rename(folder / "ImageSets" / "Segmentation" / "val.txt")
    (folder / "SegmentationClass").mkdir()
    for path in (
        squares / "labels"
    ).iterdir():  # an indexed PNG in VOC's colours, with borders of 255
        labels = Image.open(path)
        labels.putpalette(bytes(range(256)) * 3)
        labels.paste(255, (0, 0, 64, 2))
        labels.save(folder / "SegmentationClass" / path.name)
    result = evaluate(tiny_model, "--data", folder, "--split", "val")
    assert result.exit_code == 0, result.stderr
    assert "over the 3 classes present" in result.stdout
    assert "3 images in" in result.stdout
    assert "lists in that folder: val" in error_line(tiny_model, "--data", folder)


def test_evaluate_option_changes_figures_and_is_reported(data, tiny_model, tmp_path):
    for path, given in (
        (tmp_path / "plain.json", ()),
        (tmp_path / "changed.json", ("--tta", "flip")),
    ):
        assert evaluate(tiny_model, "--data", data, "--json", path, *given).exit_code == 0
    plain, changed = (
        json.loads((tmp_path / f"{name}.json").read_text()) for name in ("plain", "changed")
    )
    assert changed["options"] == {"tta": "flip"}
    assert plain["confusion"] != changed["confusion"]


def test_evaluate_write_puts_the_figures_into_record_and_card(data, tmp_path):
    model = write_tiny_model(tmp_path)
    assert (
        evaluate(model, "--data", data, "--json", tmp_path / "figures.json", "--write").exit_code
        == 0
    )
    report = EvaluationReport.model_validate_json((tmp_path / "figures.json").read_text())
    assert read_record(model).accuracy == as_accuracy(report)
    card = (model / "README.md").read_text()
    assert f"mean boundary IoU: {report.mean_boundary_iou:.3f}" in card
    assert "Written by `segserve evaluate --write`; edit" in card


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--write", "--tta", "flip"), "--write and --tta do not go together"),
        (("--write", "--mode", "slide"), "--write and --mode do not go together"),
        (("--write", "--server", "http://127.0.0.1:1"), "--write and --server do not go together"),
        (("--json", "."), "is a folder: expected the name of a file"),
        (("--split", "nosuchsplit"), "nosuchsplit"),
    ],
    ids=["write and tta", "write and mode", "write and server", "folder as file", "unknown split"],
)
def test_evaluate_bad_arguments_are_reported_in_one_line(data, tiny_model, arguments, message):
    assert message in error_line(tiny_model, "--data", data, *arguments)


def test_evaluate_unknown_model_is_reported_in_one_line(data):
    assert "'nosuchmodel': no model folder, and no name of a model" in error_line(
        "nosuchmodel", "--data", data
    )


def test_evaluate_missing_data_is_reported_in_one_line(tiny_model, tmp_path):
    assert "nowhere" in error_line(tiny_model, "--data", tmp_path / "nowhere")


def test_evaluate_unknown_label_is_reported_in_one_line_and_nothing_is_written(
    data, tiny_model, tmp_path
):
    odd = shutil.copytree(data, tmp_path / "odd")
    write_pair(odd, "square2", np.zeros((64, 64, 3), np.uint8), np.full((64, 64), 7, np.uint8))
    outputs = "--json", tmp_path / "figures.json", "--page", tmp_path / "page.html"
    line = error_line(tiny_model, "--data", odd, *outputs)
    assert "square2" in line
    assert "7" in line
    assert [path.name for path in tmp_path.iterdir()] == ["odd"]


def test_evaluate_unreachable_server_is_reported_in_one_line(silent_url, data, tiny_model):
    assert f"{silent_url}: no server responds there" in error_line(
        tiny_model, "--data", data, "--server", silent_url
    )
