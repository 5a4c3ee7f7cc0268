"""`segserve profile`: stages, the trace, and what it rejects."""

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from segserve.cli import app
from segserve.cli.models import profile_image
from segserve.local import LocalSegmenter


@pytest.fixture
def image_file(tmp_path):
    path = tmp_path / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)).save(path)
    return path


def test_profile_image_reports_stages_that_sum_up_to_no_more_than_the_whole(tiny_model, image_file):
    with LocalSegmenter(tiny_model, device="cpu") as segmenter:
        medians_ms = profile_image(segmenter, image_file.read_bytes(), repeat=5)
    assert list(medians_ms) == ["decode", "preprocess", "inference", "encode", "total"]
    assert all(ms > 0 for ms in medians_ms.values())
    assert medians_ms["inference"] < medians_ms["total"]


def test_profile_command_prints_a_table_and_writes_a_trace(tiny_model, image_file, tmp_path):
    trace = tmp_path / "trace.json"
    command = [
        "profile",
        str(image_file),
        "--model",
        str(tiny_model),
        "--repeat",
        "2",
        "--trace",
        str(trace),
    ]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    for word in ("decode", "inference", "total", "100%", str(trace.name)):
        assert word in result.output
    assert any(
        "OpenVINO network" in event["name"]
        for event in json.loads(trace.read_text())["traceEvents"]
    )


def test_profile_command_what_is_no_image_is_reported_in_one_line(tiny_model, tmp_path):
    (tmp_path / "notes.jpg").write_text("no image")
    result = CliRunner().invoke(
        app, ["profile", str(tmp_path / "notes.jpg"), "--model", str(tiny_model)]
    )
    assert result.exit_code == 1
    assert "not an image of a format that is read" in " ".join(result.stderr.split())
