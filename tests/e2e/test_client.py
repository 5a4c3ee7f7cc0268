"""Every way to ask, against one real TorchServe: the same label map, and errors that say what to
do.
"""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import requests

from segserve.archive import build_archive
from segserve.client import (
    AsyncSegmentationClient,
    AuthenticationError,
    ResponseError,
    SegmentationClient,
    UnknownModelError,
)
from segserve.engines.running import KEY_FILE
from segserve.engines.torchserve.process import TorchServe
from segserve.local import LocalSegmenter
from tests.conftest import EMBEDDED
from tests.documents import blocks

MAX_REQUEST_BYTES = 2_000_000
SLIDE = {"mode": "slide", "classes": ["cat", "dog"], "threshold": 0.6, "confidence": True}


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return build_archive(EMBEDDED, tmp_path_factory.mktemp("archive"))


@pytest.fixture(scope="module")
def server(archive, tmp_path_factory):
    limit = {"max_request_size": str(MAX_REQUEST_BYTES)}
    with TorchServe.start(
        [archive], tmp_path_factory.mktemp("client") / "run", overrides=limit
    ) as server:
        server.wait_ready()
        yield server


@pytest.fixture(scope="module")
def address_of(server):
    return {"http": server.inference_url, "grpc": server.grpc_address}


@pytest.fixture(scope="module")
def local(archive):
    return LocalSegmenter(archive, device="cpu")


def awaited(url, *images, options=None, **arguments):
    async def run():
        async with AsyncSegmentationClient(url, **arguments) as client:
            return await asyncio.gather(
                *(client.segment(image, **(options or {})) for image in images)
            )

    return asyncio.run(run())


transports = pytest.mark.parametrize("transport", ["http", "grpc"])


@transports
@pytest.mark.parametrize("options", [{}, SLIDE], ids=["no options", "all options"])
def test_clients_and_local_give_the_same_segmentation(
    server, address_of, local, photographs, transport, options
):
    image, expected = photographs["chelsea"], local.segment(photographs["chelsea"], **options)
    arguments = {"token": server.inference_token, "transport": transport}
    with SegmentationClient(address_of[transport], **arguments) as client:
        waited = client.segment(image, **options)
    [of_async] = awaited(address_of[transport], image, options=options, **arguments)
    for segmentation in (waited, of_async):
        assert np.array_equal(segmentation.label_map, expected.label_map)
        assert segmentation.classes == expected.classes
        assert segmentation.palette == expected.palette
        assert np.array_equal(segmentation.confidence_map, expected.confidence_map)
    assert expected.mask_of("cat").mean() > 0.3
    assert (waited.confidence_map is None) == (not options)


@transports
@pytest.mark.parametrize("mask", ["dense", "rle", "png", "polygons", "none"])
def test_segment_raw_equals_the_local_response_byte_for_byte(
    server, address_of, local, photographs, transport, mask
):
    with SegmentationClient(
        address_of[transport], token=server.inference_token, transport=transport
    ) as client:
        assert client.segment_raw(photographs["chelsea"], mask=mask) == local.segment_raw(
            photographs["chelsea"], mask=mask
        )


@pytest.mark.parametrize("accept", ["image/png", "image/jpeg", "application/x-npy"])
def test_segment_raw_of_every_media_type_equals_the_local_response(
    server, local, photographs, accept
):
    with SegmentationClient(server.inference_url, token=server.inference_token) as client:
        assert client.segment_raw(photographs["chelsea"], accept) == local.segment_raw(
            photographs["chelsea"], accept
        )


def test_segment_over_http_has_the_server_s_timings(server, photographs):
    with SegmentationClient(server.inference_url, token=server.inference_token) as client:
        assert client.segment(photographs["chelsea"]).timings_ms.keys() == {
            "decode", "preprocess", "inference", "encode"
        }  # fmt: skip


@transports
def test_eight_threads_get_their_own_answers(server, address_of, local, photographs, transport):
    expected = {image: local.segment(image).label_map for image in photographs.values()}
    images = [*photographs.values()] * 4
    arguments = {"token": server.inference_token, "transport": transport}
    with (
        SegmentationClient(address_of[transport], **arguments) as client,
        ThreadPoolExecutor(8) as threads,
    ):
        answers = list(threads.map(client.segment, images))
    assert all(
        np.array_equal(answer.label_map, expected[image])
        for image, answer in zip(images, answers, strict=True)
    )


@transports
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"token": "wrong"},
            AuthenticationError,
            "^400 InvalidKeyException: .*; `segserve serve` prints a new one$",
        ),
        (
            {"token": None},
            AuthenticationError,
            "^400 InvalidKeyException: .*; `segserve serve` prints a new one$",
        ),
        (
            {"model": "nope"},
            UnknownModelError,
            "^404 ModelNotFoundException: Model not found: nope; name the model",
        ),
        (
            {"version": "9"},
            UnknownModelError,
            "^404 ModelVersionNotFoundException: Model version: 9 .*; leave the",
        ),
    ],
    ids=["wrong token", "no token", "wrong model", "wrong version"],
)
def test_segment_wrong_token_or_model_says_what_to_do(
    server, address_of, photographs, transport, arguments, error, message
):
    arguments = {"token": server.inference_token, "transport": transport, **arguments}
    with (
        SegmentationClient(address_of[transport], **arguments) as client,
        pytest.raises(error, match=message),
    ):
        client.segment(photographs["chelsea"])
    with pytest.raises(error, match=message):
        awaited(address_of[transport], photographs["chelsea"], **arguments)


def test_segment_token_that_is_no_longer_valid_says_what_to_do(server, photographs):
    """An expired token is refused in the same words, but expires after a minute at the soonest."""
    old = server.inference_token
    api_key = json.loads((server.run_dir / KEY_FILE).read_text())["API"]["key"]
    authorization = {"Authorization": f"Bearer {api_key}"}
    requests.get(
        f"{server.management_url}/token?type=inference", headers=authorization, timeout=30
    ).raise_for_status()
    with (
        SegmentationClient(server.inference_url, token=old) as client,
        pytest.raises(
            AuthenticationError, match=r"incorrect, expired, .*; `segserve serve` prints a new one$"
        ),
    ):
        client.segment(photographs["chelsea"])
    with SegmentationClient(server.inference_url, token=server.inference_token) as client:
        assert client.segment(photographs["chelsea"]).mask_of("cat").any()


@transports
@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (b"no image", {}, r"^415 image_unsupported: "),
        (b"\x89PNG\r\n\x1a\n", {}, r"^422 image_corrupt: "),
        (b"\xff" * (MAX_REQUEST_BYTES + 1), {}, r"max_request_size"),
        (None, {"mode": "bogus"}, r"^400 bad_option: option mode: got 'bogus'"),
        (None, {"classes": ["cat", "café"]}, r"^400 bad_option: option classes: got 'café'"),
        (None, {"threshold": 2}, r"^400 bad_option: option threshold"),
    ],
    ids=["text", "cut image", "too many bytes", "unknown mode", "unknown class", "threshold"],
)
def test_segment_refusal_is_the_server_s(
    server, address_of, photographs, transport, image, options, message
):
    image = photographs["chelsea"] if image is None else image
    arguments = {"token": server.inference_token, "transport": transport}
    with SegmentationClient(address_of[transport], **arguments) as client:
        with pytest.raises(ResponseError, match=message):
            client.segment(image, **options)
        assert (
            client.segment(photographs["chelsea"]).mask_of("cat").any()
        )  # the connection, or another, still works


def test_documentation_s_python_runs_from_top_to_bottom(
    server, archive, photographs, tmp_path, monkeypatch
):
    """On a server that runs, with TOKEN set, a cat in the folder and the archive in build/."""
    (tmp_path / "cat.png").write_bytes(photographs["chelsea"])
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / archive.name).symlink_to(archive)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOKEN", server.inference_token)
    names = {}
    for block in blocks("docs/client.md", "python"):
        code = block.replace("http://127.0.0.1:8080", server.inference_url).replace(
            "127.0.0.1:7070", server.grpc_address
        )
        exec(compile(code, "docs/client.md", "exec"), names)  # noqa: S102 - the project's own
    assert names["segmentation"].mask_of("cat").any()
    assert {path.name for path in Path().iterdir()} >= {"labels.png", "overlay.jpg", "cat.json"}
