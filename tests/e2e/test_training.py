"""The commands from a data set to a response over HTTP: train, archive, serve, request. Also
interrupted and distributed training, and bad input.
"""

import csv
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from segserve.client import SegmentationClient
from segserve.gateway.background import Server
from tests.unit.voc import write_squares

CLASSES = "- label: background\n- label: red\n- label: blue\n  color: [0, 0, 255]\n"
FLAGS = [
    *(
        "--backbone",
        "test_efficientnet",
        "--aspp-rates",
        "1,2",
        "--aspp-out-channels",
        "16",
        "--size-px",
        "64",
    ),
    *(
        "--batch-size",
        "4",
        "--image-px",
        "64",
        "--crop-px",
        "64",
        "--scales",
        "0.8,1.2",
        "--precision",
        "fp32",
    ),
    *("--warmup-steps", "2", "--batch-norm-momentum", "0.1"),
]
FOLDER = Path(__file__).parents[2]


def command(*arguments, launcher=("-m",)):
    return [sys.executable, *launcher, "segserve", *map(str, arguments)]


def segserve(*arguments, cwd, launcher=("-m",)):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(FOLDER)}
    return subprocess.run(
        command(*arguments, launcher=launcher),
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    folder = write_squares(tmp_path_factory.mktemp("squares"), images=8)
    (folder / "classes.yaml").write_text(CLASSES)
    return folder


def training(squares, model, *flags):
    return [
        "train",
        model,
        "--data",
        squares,
        "--classes",
        squares / "classes.yaml",
        *FLAGS,
        *flags,
    ]


def digest(model):
    return hashlib.sha256((model / "weights.safetensors").read_bytes()).hexdigest()


def test_train_archive_serve_and_request_a_mask(squares, tmp_path):
    model = tmp_path / "squares"
    trained = segserve(
        *training(
            squares,
            model,
            "--steps",
            120,
            "--val",
            "train",
            "--validate-every",
            60,
            "--backbone-lr",
            0.02,
        ),
        cwd=tmp_path,
    )
    assert trained.returncode == 0, trained.stderr
    assert {"model.yaml", "recipe.yaml", "weights.safetensors", "README.md", "predictions.jpg"} <= {
        path.name for path in model.iterdir()
    }
    record = yaml.safe_load((model / "model.yaml").read_text())
    assert record["accuracy"]["mean_iou"] > 0.8
    assert f"**{record['accuracy']['mean_iou']:.3f}**" in (model / "README.md").read_text()
    assert "(predictions.jpg)" in (model / "README.md").read_text()
    with Image.open(model / "predictions.jpg") as picture:
        assert picture.size == (3 * 64, 4 * 64)

    packed = segserve("archive", model, "--output", tmp_path, cwd=tmp_path)
    assert packed.returncode == 0, packed.stderr
    with Server.start([tmp_path / "squares.mar"], tmp_path / "run") as server:
        server.wait_ready()
        with SegmentationClient(
            server.inference_url, token=server.inference_token, model="squares"
        ) as client:
            mask = client.segment(squares / "images" / "square0.jpg").label_map
    truth = np.array(Image.open(squares / "labels" / "square0.png"))
    assert ((mask == 1) & (truth == 1)).sum() / ((mask == 1) | (truth == 1)).sum() > 0.7


def test_train_killed_and_resumed_ends_with_the_same_weights(squares, tmp_path):
    flags = [
        "--steps",
        40,
        "--checkpoint-every",
        3,
        "--ema-decay",
        0.9,
        "--color-jitter",
        0.2,
    ]
    whole = segserve(
        *training(squares, tmp_path / "whole", *flags, "--run", tmp_path / "run-whole"),
        cwd=tmp_path,
    )
    assert whole.returncode == 0, whole.stderr

    flags += ["--run", tmp_path / "run-killed"]
    first = training(squares, tmp_path / "killed", *flags)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(FOLDER)}
    process = subprocess.Popen(
        command(*first), cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL
    )
    log, deadline_s = tmp_path / "run-killed" / "log.csv", time.monotonic() + 120
    while not (log.exists() and len(log.read_text().splitlines()) > 8):
        assert time.monotonic() < deadline_s
        assert process.poll() is None, "finished before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "weights.safetensors").exists()

    again = segserve(*first, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert digest(tmp_path / "killed") == digest(tmp_path / "whole")
    with log.open() as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == list(range(1, 41))


def test_train_two_processes_share_the_batches(squares, tmp_path):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")
    flags = ["--steps", 4, "--checkpoint-every", 2]
    shared = segserve(
        *training(squares, tmp_path / "shared", *flags), cwd=tmp_path, launcher=launcher
    )
    assert shared.returncode == 0, shared.stderr
    alone = segserve(*training(squares, tmp_path / "alone", *flags), cwd=tmp_path)
    assert alone.returncode == 0, alone.stderr
    losses = []
    for name in ("shared", "alone"):
        with (tmp_path / "runs" / name / "recipe" / "log.csv").open() as file:
            losses.append([float(row["loss"]) for row in csv.DictReader(file)])
    assert [len(of_run) for of_run in losses] == [4, 4]
    assert digest(tmp_path / "shared") != digest(
        tmp_path / "alone"
    )  # each process has batch norms of its own half


def test_train_batch_that_processes_cannot_share_is_an_error(squares, tmp_path):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3", "-m")
    failed = segserve(
        *training(squares, tmp_path / "model", "--steps", 1), cwd=tmp_path, launcher=launcher
    )
    assert failed.returncode != 0
    assert "batch_size is 4, which 3 processes cannot share evenly" in failed.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--backbone", "resnet0"], "backbone resnet0"),
        (["--aspp-dropout", "1"], "aspp_dropout: Input should be less than 1"),
        (["--aspp-rates", "0"], "aspp_rates.0: Input should be greater than 0"),
        (["--steps", "0"], "steps: Input should be greater than 0"),
    ],
    ids=["backbone", "dropout", "rate", "steps"],
)
def test_train_bad_flag_is_reported_before_training(squares, tmp_path, flags, message):
    failed = segserve(*training(squares, tmp_path / "model", "--steps", 1, *flags), cwd=tmp_path)
    assert (failed.returncode, failed.stdout) == (1, "")
    assert message in failed.stderr
    assert failed.stderr.strip().splitlines()[-1].startswith("segserve: ")
    assert "Traceback" not in failed.stderr
    assert not (tmp_path / "model" / "weights.safetensors").exists()


def test_train_architecture_that_disagrees_with_the_record_is_an_error(squares, tmp_path):
    assert (
        segserve(*training(squares, tmp_path / "model", "--steps", 1), cwd=tmp_path).returncode == 0
    )
    failed = segserve(*training(squares, tmp_path / "model", "--head", "corenet"), cwd=tmp_path)
    assert failed.returncode == 1
    assert (
        "model.yaml does not agree with --head: leave that out, or give a new folder"
        in failed.stderr
    )


def test_train_data_with_problems_lists_them_all_and_trains_nothing(squares, tmp_path):
    data = shutil.copytree(squares, tmp_path / "data")
    (data / "labels" / "square1.png").unlink()
    Image.fromarray(np.full((64, 64), 9, np.uint8)).save(data / "labels" / "square2.png")
    Image.fromarray(np.zeros((10, 10), np.uint8)).save(data / "labels" / "square3.png")
    failed = segserve(*training(data, tmp_path / "model", "--steps", 1), cwd=tmp_path)
    assert failed.returncode == 1
    assert "3 problems with the data" in failed.stderr
    for line in (
        "square1.png: is missing",
        "square2.png: labels [9] are none of the 3",
        "square3.png: the label map has",
    ):
        assert line in failed.stderr
    assert "Traceback" not in failed.stderr
