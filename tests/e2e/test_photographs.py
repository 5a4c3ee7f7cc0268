"""The main job: real photographs go in over HTTP, and their cat and their person come out."""

import io
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import requests
from PIL import Image

from bench.machine import peak_python_bytes
from segserve.archive import build_archive
from segserve.client import ResponseError, SegmentationClient
from segserve.gateway.background import Server
from segserve.runtime.record import read_record
from tests.conftest import EMBEDDED

LABELS = read_record(EMBEDDED).labels

# Boxes (x_min, y_min, x_max, y_max) that were drawn by eye well inside the cat and the person,
# clear of the helmet that she holds.
INSIDE = {"chelsea": ("cat", (110, 60, 330, 290)), "astronaut": ("person", (110, 240, 270, 440))}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    with Server.start([build_archive(EMBEDDED, folder)], folder / "run") as server:
        server.wait_ready()
        yield server


@pytest.fixture(scope="module")
def client(server):
    with SegmentationClient(server.inference_url, token=server.inference_token) as client:
        yield client


def test_server_first_requests_after_ready_are_not_slower_than_later_ones(server, photographs):
    """Runs first in this file. The first request may take twice the tenth; the later ones' median
    stands for that.

    The connection is open beforehand, and no client decodes the response: the test measures the
    server alone.
    """
    seconds = []
    with requests.Session() as session:
        session.headers.update(
            {"Authorization": f"Bearer {server.inference_token}", "X-Segment-Mask": "png"}
        )
        session.get(f"{server.inference_url}/ping").raise_for_status()
        for _ in range(20):
            began_s = time.perf_counter()
            session.post(
                f"{server.inference_url}/predictions/deeplabv3", photographs["chelsea"]
            ).raise_for_status()
            seconds.append(time.perf_counter() - began_s)
    assert seconds[0] < 2 * statistics.median(seconds[9:])


@pytest.mark.parametrize("name", INSIDE)
def test_server_real_photograph_gets_its_class(client, photographs, name):
    label, (left, top, right, bottom) = INSIDE[name]
    segmentation = client.segment(photographs[name])
    assert np.mean(segmentation.label_map[top:bottom, left:right] == LABELS.index(label)) > 0.9
    shares = {share.label: share.fraction for share in segmentation.classes}
    foreground = {found: share for found, share in shares.items() if found != "background"}
    assert max(foreground, key=foreground.get) == label


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
@pytest.mark.parametrize(("at_once", "most_gb"), [(1, 1.5), (4, 2.0)])
def test_server_16_megapixels_stay_within_memory(
    server, client, photographs, file_format, at_once, most_gb
):
    """The logits of one such image would take 1.4 GB, were they ever there at once."""
    with Image.open(io.BytesIO(photographs["astronaut"])) as small, io.BytesIO() as file:
        small.resize((4096, 4096)).save(file, file_format)
        image = file.getvalue()
    with ThreadPoolExecutor(at_once) as clients:
        segmentations = list(clients.map(client.segment, [image] * at_once))
    assert all(segmentation.label_map.shape == (4096, 4096) for segmentation in segmentations)
    assert peak_python_bytes(server.pid) < most_gb * 1e9


def test_server_rejection_reaches_the_client_with_its_code(client):
    with pytest.raises(ResponseError, match="415 image_unsupported: not an image"):
        client.segment(b"no image at all")
