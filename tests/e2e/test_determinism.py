"""The same image gives the same bytes: alone, under load, among others in a batch, after a restart,
on any threads.

SEGSERVE_REPETITIONS is how often each image is sent under load; `make determinism` does so
1,000 times.
"""

import hashlib
import os
import shutil
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
import yaml

from segserve.archive import build_archive
from segserve.engines.torchserve_process import TorchServe
from segserve.local import LocalSegmenter
from segserve.runtime.record import read_record, write_record
from tests.conftest import EMBEDDED, PROJECT

REPETITIONS = int(os.environ.get("SEGSERVE_REPETITIONS", "30"))
CLIENTS = 6
OPTIONS = {
    "X-Segment-Mask": "png",
    "X-Segment-Confidence": "true",
}  # every pixel's class, and how sure of it
VARIANTS: Mapping[str, Mapping[str, object]] = {
    "alone": {"batchSize": 1, "handler": {"threads": 1}},
    "batched": {"batchSize": 8, "maxBatchDelay": 100, "handler": {"threads": 2}},
    "bf16": {"batchSize": 8, "maxBatchDelay": 100, "handler": {"threads": 2, "precision": "bf16"}},
}
STARTUP_TIMEOUT_S = 600  # on a machine that tests other things meanwhile


def variant(folder: Path, name: str, changes: Mapping[str, object]) -> Path:
    """The shipped model under another name, served in another way."""
    model = Path(shutil.copytree(EMBEDDED, folder / name))
    write_record(read_record(model).model_copy(update={"name": name}), model)
    config = yaml.safe_load((PROJECT / "model" / "model-config.yaml").read_text())
    handler = {**config["handler"], **changes["handler"]}
    (model / "model-config.yaml").write_text(
        yaml.safe_dump(
            {**config, **changes, "startupTimeout": STARTUP_TIMEOUT_S, "handler": handler}
        )
    )
    return build_archive(model, folder)


@pytest.fixture(scope="module")
def archives(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("archives")
    return [variant(folder, name, changes) for name, changes in VARIANTS.items()]


@pytest.fixture(scope="module")
def server(archives, tmp_path_factory):
    with TorchServe.start(archives, tmp_path_factory.mktemp("run")) as server:
        server.wait_ready(STARTUP_TIMEOUT_S)
        yield server


@pytest.fixture(scope="module")
def images(photographs) -> dict[str, bytes]:
    """Photographs of several sizes, so that shapes change from request to request."""
    return {**photographs, "jpeg": (PROJECT / "docs" / "chelsea-overlay.jpg").read_bytes()}


@pytest.fixture(scope="module")
def expected(server, images) -> dict[str, str]:
    """The response to each image without other requests."""
    return {name: respond(server, "alone", image) for name, image in images.items()}


def respond(server, model: str, image: bytes) -> str:
    headers = {"Authorization": f"Bearer {server.inference_token}", **OPTIONS}
    response = requests.post(
        f"{server.inference_url}/predictions/{model}", data=image, headers=headers, timeout=300
    )
    assert response.status_code == 200, response.text
    return digest_of(response.content, model)


def digest_of(body: bytes, model: str) -> str:
    """Without the name of the model, which is not of the image."""
    reported = f'"model":{{"name":"{model}"'.encode()
    assert body.count(reported) == 1
    return hashlib.sha256(body.replace(reported, b"")).hexdigest()


def under_load(server, model: str, images: Mapping[str, bytes]) -> dict[str, set[str]]:
    """The different responses to each image while others are computed."""
    names = list(images) * REPETITIONS
    with ThreadPoolExecutor(CLIENTS) as clients:
        responses = list(clients.map(lambda name: respond(server, model, images[name]), names))
    different = defaultdict(set)
    for name, digest in zip(names, responses, strict=True):
        different[name].add(digest)
    return dict(different)


@pytest.mark.parametrize("model", ["alone", "batched"])
def test_same_image_under_load_gives_the_same_bytes(server, images, expected, model):
    different = under_load(server, model, images)
    assert different == {name: {digest} for name, digest in expected.items()}


def test_same_image_on_another_number_of_threads_gives_the_same_bytes(server, images, expected):
    """One by one: a batch of one image has both threads of its worker."""
    assert {name: respond(server, "batched", image) for name, image in images.items()} == expected


def test_same_image_in_bf16_under_load_gives_the_bytes_that_it_gives_without_a_server(
    server, archives, images
):
    in_bf16 = LocalSegmenter(next(archive for archive in archives if archive.stem == "bf16"))
    alone = {
        name: digest_of(in_bf16.segment_raw(image, mask="png", confidence=True), "bf16")
        for name, image in images.items()
    }
    assert under_load(server, "bf16", images) == {name: {digest} for name, digest in alone.items()}


def test_same_image_after_a_restart_gives_the_same_bytes(archives, images, expected, tmp_path):
    with TorchServe.start(archives[:1], tmp_path / "run") as again:
        again.wait_ready(STARTUP_TIMEOUT_S)
        assert {name: respond(again, "alone", image) for name, image in images.items()} == expected
