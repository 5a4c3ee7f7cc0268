"""The same files measured offline and through a real server: the metrics agree."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from segserve.archive import build_archive
from segserve.cli import app
from segserve.gateway.background import Server
from segserve.resources import sample_photograph
from segserve.runtime.decode.image import decode_image
from segserve.runtime.inference import load_segmenter
from segserve.runtime.settings import Settings
from segserve.training.data import IGNORED
from segserve.training.report import EvaluationReport
from tests.conftest import EMBEDDED

PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")
ORIENTATION, TURNED_RIGHT = 0x0112, 6  # EXIF: turn the picture by 90 degrees to show it
SHIFT_PX = 12


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Two data sets of the same files: `same` has the labels that the model predicts offline,
    `shifted` has them moved by 12 pixels.

    On the first, the model is perfect, so that every other pixel of the server shows. On the
    second, no metric is 0 or 1.
    """
    folder, segmenter = (
        tmp_path_factory.mktemp("photographs"),
        load_segmenter(EMBEDDED, device="cpu", settings=Settings()),
    )
    files = {name: sample_photograph(name).read_bytes() for name in PHOTOGRAPHS} | {
        "turned.jpg": turned_cat()
    }
    for name, content in files.items():
        labels = segmenter.segment(decode_image(content, max_pixels=2**24)).label_map
        shifted = np.roll(labels, SHIFT_PX, axis=1)
        shifted[:, :SHIFT_PX] = IGNORED
        write_pair(folder / "same", name, content, labels)
        write_pair(folder / "shifted", name, content, shifted)
    return folder


def turned_cat() -> bytes:
    """A JPEG that is stored turned by 90 degrees, with its EXIF orientation."""
    exif, file = Image.Exif(), io.BytesIO()
    exif[ORIENTATION] = TURNED_RIGHT
    with Image.open(sample_photograph("chelsea.png")) as picture:
        picture.transpose(Image.Transpose.ROTATE_90).save(file, "JPEG", quality=95, exif=exif)
    return file.getvalue()


def write_pair(folder: Path, name: str, content: bytes, labels: np.ndarray) -> None:
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "images" / name).write_bytes(content)
    Image.fromarray(labels).save(folder / "labels" / f"{Path(name).stem}.png")
    with (folder / "dev.txt").open("a") as split:
        split.write(f"{Path(name).stem}\n")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    with Server.start([build_archive(EMBEDDED, folder)], folder / "run") as server:
        server.wait_ready()
        yield server


def evaluated(data: Path, output: Path, *arguments: str) -> EvaluationReport:
    command = [
        "evaluate",
        "embedded",
        "--data",
        str(data),
        "--split",
        "dev",
        "--json",
        str(output),
    ]
    result = CliRunner().invoke(app, [*command, *arguments])
    assert result.exit_code == 0, result.stderr
    return EvaluationReport.model_validate_json(output.read_text())


@pytest.mark.parametrize("truth", ["same", "shifted"])
@pytest.mark.parametrize("options", [(), ("--tta", "flip")], ids=["plain", "flip"])
def test_evaluation_through_the_server_agrees_with_the_offline_one(
    data, server, tmp_path, truth, options
):
    offline = evaluated(data / truth, tmp_path / "offline.json", *options)
    address = "--server", server.inference_url, "--token", server.inference_token
    served = evaluated(data / truth, tmp_path / "served.json", *options, *address)
    assert served.server == server.inference_url
    assert served.images == offline.images == len(PHOTOGRAPHS) + 1
    assert abs(served.mean_iou - offline.mean_iou) <= 0.001
    assert abs(served.mean_boundary_iou - offline.mean_boundary_iou) <= 0.001
    assert served.image_mean_iou == pytest.approx(offline.image_mean_iou, abs=0.001)
    assert {"background", "cat", "person"} <= {row.label for row in offline.present}
    if truth == "shifted":
        assert 0.5 < offline.mean_iou < 0.99
        assert 0.1 < offline.mean_boundary_iou < 0.9
    elif not options:
        assert offline.mean_iou == 1


def test_evaluation_with_a_wrong_token_reports_the_error_of_the_server(data, server):
    arguments = (
        "evaluate",
        "--data",
        str(data / "same"),
        "--server",
        server.inference_url,
        "--token",
        "wrong",
    )
    result = CliRunner().invoke(app, [*arguments])
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("segserve: astronaut: 400 InvalidKeyException")


def test_evaluation_of_a_model_that_is_not_served_is_an_error(data, server):
    address = "--server", server.inference_url, "--token", server.inference_token, "--name", "other"
    result = CliRunner().invoke(app, ["evaluate", "--data", str(data / "same"), *address])
    assert result.exit_code == 1
    assert "astronaut: 404 ModelNotFoundException" in result.stderr.splitlines()[-1]
