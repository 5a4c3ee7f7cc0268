"""`segserve segment` and docs/cli.md against a real server that was left running in the user's
folder.
"""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from segserve.client import SegmentationClient
from segserve.gateway.background import Server
from tests.documents import blocks

from .user import segserve, shell

BLOCKS = blocks("docs/cli.md", "sh")


def label_map(path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.array(picture)


def test_segment_finds_the_server_and_writes_what_the_client_gets(folder):
    done = segserve("segment", "photos", "-o", "served", "--overlay", folder=folder)
    assert done.returncode == 0, done.stderr
    server = Server.running(folder / ".run" / "serve")
    with SegmentationClient(server.inference_url, token=server.inference_token) as client:
        for name in ("cat", "trip/astronaut"):
            expected = client.segment(folder / "photos" / f"{name}.png")
            assert np.array_equal(label_map(folder / "served" / f"{name}.png"), expected.label_map)
            with Image.open(folder / "served" / f"{name}-overlay.jpg") as overlay:
                assert overlay.size == expected.label_map.shape[::-1]


def test_segment_locally_gives_the_servers_files(folder):
    # The server has its own number of threads, whose sums may round otherwise: a pixel on an edge
    # may differ.
    for arguments in (
        ("-o", "by-server"),
        ("-o", "by-itself", "--local"),
        ("-o", "packed", "--local", "--model"),
    ):
        given = (*arguments, "build/deeplabv3.mar") if arguments[-1] == "--model" else arguments
        done = segserve("segment", "cat.png", *given, folder=folder)
        assert done.returncode == 0, done.stderr
    by_server, by_itself, packed = (
        label_map(folder / name / "cat.png") for name in ("by-server", "by-itself", "packed")
    )
    assert np.array_equal(by_itself, packed)
    assert np.mean(by_server != by_itself) < 0.001


def test_segment_locally_that_is_interrupted_ends_in_order(folder, tmp_path):
    """Python must not end while torch is at work: that would abort it."""
    for number in range(30):
        (tmp_path / f"{number}.png").symlink_to(folder / "cat.png")
    command = [
        sys.executable,
        "-m",
        "segserve",
        "segment",
        str(tmp_path),
        "-o",
        "interrupted",
        "--local",
    ]
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not list(folder.glob("interrupted/*.png")) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    [line] = stderr.splitlines()
    assert line.endswith("the same command goes on where it stopped")
    assert not list(folder.glob("interrupted/.*.part"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--token", "wrong"), "Token either incorrect, expired"),
        (("--model", "absent"), "Model not found: absent"),
        (("--classes", "dgo"), "dog"),
        (("--local", "--classes", "dgo"), "dog"),
        (
            ("--local", "--model", "absent"),
            "'absent': no model folder, and no name of a model: embedded, ",
        ),
    ],
    ids=["wrong token", "wrong model", "unknown class", "unknown class locally", "no such model"],
)
def test_segment_that_is_rejected_says_why_in_one_line(folder, tmp_path, arguments, message):
    done = segserve("segment", "photos", "-o", str(tmp_path), *arguments, folder=folder)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert message in line


def test_segment_with_empty_address_uses_the_server_of_the_folder(folder, tmp_path):
    """As a script does whose variable is not set."""
    done = segserve("segment", "cat.png", "-o", str(tmp_path), "--server", "", folder=folder)
    assert done.returncode == 0, done.stderr


def test_segment_at_the_wrong_port_of_the_server_says_which_is_right(folder, tmp_path):
    server = Server.running(folder / ".run" / "serve")
    done = segserve(
        "segment", "cat.png", "-o", str(tmp_path), "--server", server.metrics_url, folder=folder
    )
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert "this is not a segmentation server: check the address" in line


def test_doctor_finds_the_server_well(folder):
    done = segserve("doctor", "--json", folder=folder)
    findings = {finding["subject"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert "a worker is READY" in findings["server"]["message"]
    assert findings["token"] == {
        "subject": "token",
        "level": "ok",
        "message": "valid",
        "remedy": "",
    }
    assert findings["archive"]["level"] == "ok"


def test_doctor_with_wrong_token_exits_1(folder):
    done = segserve("doctor", "--token", "wrong", folder=folder)
    assert done.returncode == 1
    assert "is wrong or has expired" in done.stdout


@pytest.mark.parametrize("block", BLOCKS, ids=[block.splitlines()[0][:60] for block in BLOCKS])
def test_cli_page_blocks_run(folder, block):
    shell(block, folder=folder)


def test_cli_page_has_blocks_of_both_commands():
    assert any("segserve segment" in block for block in BLOCKS)
    assert any("segserve doctor" in block for block in BLOCKS)
