"""README's code runs as it stands there, and gives what it says."""

import io
import json
import re
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import requests
import torch
from PIL import Image
from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large

from segserve.engines.torchserve_process import find_java
from segserve.gateway.background import Server
from segserve.runtime.record import read_record, sha256_of, write_record
from tests.conftest import PROJECT
from tests.deploy.served import free_ports
from tests.documents import blocks
from tests.file_server import served
from tests.unit.voc import write_pair, write_split

from .user import segserve, shell

README = (PROJECT / "README.md").read_text(encoding="utf-8")
SHELL = blocks("README.md", "sh")


def shell_block(containing: str) -> str:
    [block] = [block for block in SHELL if containing in block]
    return block


@pytest.fixture(scope="module")
def reader(folder):
    """Runs a block where README's reader would: a server is up, TOKEN is set, cat.png lies in the
    folder.
    """
    server = Server.running(folder / ".run" / "serve")

    def read(block: str, language: str = "sh") -> str:
        block = block.replace("http://127.0.0.1:8080", server.inference_url)
        if language == "python":
            (folder / "block.py").write_text(block)
            block = "python block.py"
        return shell(block, folder=folder, TOKEN=server.inference_token)

    return read


def test_readme_curl_gives_the_response_that_readme_shows(reader):
    reply = json.loads(reader(shell_block("curl")))
    [shown] = map(json.loads, blocks("README.md", "json"))
    assert reply.keys() == shown.keys()
    assert (reply["model"], reply["width"], reply["height"]) == (
        shown["model"],
        shown["width"],
        shown["height"],
    )
    # Another processor rounds otherwise: a small class at the border may come or go, the large ones
    # stay.
    for entry in shown["classes"]:
        if entry["fraction"] > 0.05:
            [same] = [other for other in reply["classes"] if other["id"] == entry["id"]]
            assert same["label"] == entry["label"]
            assert same["fraction"] == pytest.approx(entry["fraction"], abs=0.02)


def test_readme_python_prints_the_pixels_of_the_cat(reader, folder):
    [code] = blocks("README.md", "python")
    assert re.search(r"'cat': \d{5,}", reader(code, "python"))
    assert (folder / "overlay.jpg").exists()


def test_readme_segment_makes_the_files_that_readme_names(reader, folder):
    reader(shell_block("segserve segment"))
    for name in (
        "masks/cat.png",
        "masks/cat-overlay.jpg",
        "coco/segmentation.coco.json",
        "local/cat.png",
    ):
        assert (folder / name).exists()


def test_readme_archive_runs_on_a_plain_torchserve(tmp_path, photographs):
    """With its own ports, as other servers may run here. The lines are README's."""
    start, stop = shell_block("torchserve --start").rsplit("\n", 2)[0], "torchserve --stop\n"
    config = (PROJECT / "config.properties").read_text(encoding="utf-8")
    ports = dict(zip(("8080", "8081", "8082", "7070", "7071"), free_ports(5), strict=True))
    for default, port in ports.items():
        config = config.replace(default, str(port))
    (tmp_path / "config.properties").write_text(config, encoding="utf-8")
    url = f"http://127.0.0.1:{ports['8080']}/predictions/deeplabv3"
    java_home = find_java()
    variables = {"JAVA_HOME": str(java_home), "TEMP": str(tmp_path)}
    try:
        # TorchServe keeps the standard output of its command
        shell(f"{start} >torchserve.log 2>&1", folder=tmp_path, **variables)
        response = predicted(url, tmp_path / "key_file.json", photographs["chelsea"])
    finally:
        shell(stop, folder=tmp_path, **variables)
    assert "cat" in {row["label"] for row in response["classes"]}


def predicted(url: str, key_file: Path, image: bytes) -> dict:
    deadline_s = time.monotonic() + 180
    while True:
        with suppress(requests.ConnectionError, FileNotFoundError, ValueError):
            token = json.loads(key_file.read_text())["inference"]["key"]
            headers = {"Authorization": f"Bearer {token}"}
            response = requests.post(url, data=image, headers=headers, timeout=60)
            if response.ok:
                return response.json()
        assert time.monotonic() < deadline_s
        time.sleep(0.5)


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A folder `resnet101` in place of the one in model/: a smaller network, its checkpoint on a
    local mirror.
    """
    model = shutil.copytree(PROJECT / "model" / "mobilenet_v3_large", tmp_path / "resnet101")
    torch.manual_seed(0)
    network = deeplabv3_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=21, aux_loss=True
    )
    torch.save(network.state_dict(), tmp_path / "checkpoint.pth")
    record = read_record(model)
    checkpoint = record.checkpoint.model_copy(
        update={"sha256": sha256_of(tmp_path / "checkpoint.pth")}
    )
    write_record(record.model_copy(update={"checkpoint": checkpoint, "accuracy": None}), model)
    with served((tmp_path / "checkpoint.pth").read_bytes(), path=f"/{checkpoint.file}") as server:
        monkeypatch.setenv("SEGSERVE_MIRROR", server.url)
        yield tmp_path


def test_readme_fetch_and_serve_a_published_model(published):
    try:
        printed = shell(shell_block("segserve fetch"), folder=published)
    finally:
        segserve("stop", folder=published)
    assert "deeplabv3_mobilenet_v3_large is ready at http://127.0.0.1:" in printed


def test_readme_train_evaluate_and_archive(tmp_path, photographs):
    """On two photographs, for two steps in place of thousands."""
    write_two_photographs(tmp_path / "DATA", photographs)
    (tmp_path / "classes.yaml").write_text("- label: background\n- label: cat\n")
    (tmp_path / "model").mkdir()
    block = shell_block("segserve train")
    assert "--steps 5000" in block
    shell(block.replace("--steps 5000", "--steps 2 --batch-size 4"), folder=tmp_path)
    assert (tmp_path / "figures.html").exists()
    assert (tmp_path / "build" / "mine.mar").exists()


def test_readme_make_targets_are_in_the_makefile():
    named = set(re.findall(r"`?make (\w+)", README)) - {"and"}
    assert named
    for target in named:
        subprocess.run(
            ["make", "--dry-run", target], cwd=PROJECT, capture_output=True, check=True, timeout=30
        )


def test_readme_every_block_is_run():
    tested = ("curl", "segserve segment", "segserve fetch", "segserve train", "torchserve --start")
    untested = [block for block in SHELL if not any(part in block for part in tested)]
    assert [
        line for block in untested for line in block.splitlines() if not line.startswith("make ")
    ] == []


def test_readme_links_lead_to_files():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (PROJECT / link).exists()] == []


def write_two_photographs(data, photographs):

    for name, content in photographs.items():
        with Image.open(io.BytesIO(content)) as picture:
            image_rgb = np.asarray(picture.convert("RGB"))
        labels = np.zeros(image_rgb.shape[:2], np.uint8)
        labels[100:200, 100:300] = 1
        write_pair(data, name, image_rgb, labels)
    for split in ("train", "dev"):
        write_split(data, split, list(photographs))
