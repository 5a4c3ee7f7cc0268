"""Both clients and TorchServe's gRPC port against one real TorchServe: the same label map, and
errors that say what to do.
"""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
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
from segserve.engines.torchserve_process import KEY_FILE, TorchServe
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
def local(archive):
    return LocalSegmenter(archive, device="cpu")


def segmented_async(url, *images, options=None, **arguments):
    async def run():
        async with AsyncSegmentationClient(url, **arguments) as client:
            return await asyncio.gather(
                *(client.segment(image, **(options or {})) for image in images)
            )

    return asyncio.run(run())


@pytest.mark.parametrize("options", [{}, SLIDE], ids=["no options", "all options"])
def test_clients_and_local_give_the_same_segmentation(server, local, photographs, options):
    image, expected = photographs["chelsea"], local.segment(photographs["chelsea"], **options)
    arguments = {"token": server.inference_token}
    with SegmentationClient(server.inference_url, **arguments) as client:
        of_sync = client.segment(image, **options)
    [of_async] = segmented_async(server.inference_url, image, options=options, **arguments)
    for segmentation in (of_sync, of_async):
        assert np.array_equal(segmentation.label_map, expected.label_map)
        assert segmentation.classes == expected.classes
        assert segmentation.palette == expected.palette
        assert np.array_equal(segmentation.confidence_map, expected.confidence_map)
    assert expected.mask_of("cat").mean() > 0.3
    assert (of_sync.confidence_map is None) == (not options)


@pytest.mark.parametrize("mask", ["dense", "rle", "png", "polygons", "none"])
def test_segment_raw_equals_the_local_response_byte_for_byte(server, local, photographs, mask):
    with SegmentationClient(server.inference_url, token=server.inference_token) as client:
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


def test_segment_from_eight_threads_returns_each_its_own_result(server, local, photographs):
    expected = {image: local.segment(image).label_map for image in photographs.values()}
    images = [*photographs.values()] * 4
    arguments = {"token": server.inference_token}
    with (
        SegmentationClient(server.inference_url, **arguments) as client,
        ThreadPoolExecutor(8) as threads,
    ):
        results = list(threads.map(client.segment, images))
    assert all(
        np.array_equal(result.label_map, expected[image])
        for image, result in zip(images, results, strict=True)
    )


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
    server, photographs, arguments, error, message
):
    arguments = {"token": server.inference_token, **arguments}
    with (
        SegmentationClient(server.inference_url, **arguments) as client,
        pytest.raises(error, match=message),
    ):
        client.segment(photographs["chelsea"])
    with pytest.raises(error, match=message):
        segmented_async(server.inference_url, photographs["chelsea"], **arguments)


def test_segment_token_that_is_no_longer_valid_says_what_to_do(server, photographs):
    """An expired token gives the same error, but expires after one minute at the earliest."""
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
def test_segment_error_is_that_of_the_server(server, photographs, image, options, message):
    image = photographs["chelsea"] if image is None else image
    arguments = {"token": server.inference_token}
    with SegmentationClient(server.inference_url, **arguments) as client:
        with pytest.raises(ResponseError, match=message):
            client.segment(image, **options)
        assert (
            client.segment(photographs["chelsea"]).mask_of("cat").any()
        )  # the connection, or another, still works


def predict_over_grpc(server, token: str, parts: dict[str, bytes]) -> bytes:
    """Calls Predictions of TorchServe's inference.proto, with messages encoded by hand."""

    def encoded(number: int, content: bytes) -> bytes:
        length, rest = bytearray(), len(content)
        while rest > 127:
            length.append(rest & 127 | 128)
            rest >>= 7
        return bytes([number << 3 | 2, *length, rest]) + content

    request = encoded(1, b"deeplabv3")
    for name, content in parts.items():
        request += encoded(3, encoded(1, name.encode()) + encoded(2, content))
    with grpc.insecure_channel(server.grpc_address) as channel:
        response = channel.unary_unary(
            "/org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions"
        )(request, timeout=60, metadata=[("authorization", f"Bearer {token}")])
    return response


@pytest.mark.parametrize("mask", ["rle", "none"])
def test_grpc_port_of_torchserve_returns_the_response_body(server, local, photographs, mask):
    parts = {"data": photographs["chelsea"], "mask": mask.encode()}
    response = predict_over_grpc(server, server.inference_token, parts)
    assert response.endswith(local.segment_raw(photographs["chelsea"], mask=mask))


def test_grpc_port_of_torchserve_returns_errors_in_the_body(server):
    response = predict_over_grpc(server, server.inference_token, {"data": b"no image"})
    assert b'{"error":{"code":"image_unsupported"' in response


def test_documentation_s_python_runs_from_top_to_bottom(
    server, archive, photographs, tmp_path, monkeypatch
):
    """With a server in the variables, a cat in the folder and the archive in build/."""
    (tmp_path / "cat.png").write_bytes(photographs["chelsea"])
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / archive.name).symlink_to(archive)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SEGSERVE_URL", server.inference_url)
    monkeypatch.setenv("SEGSERVE_TOKEN", server.inference_token)
    names = {}
    for block in blocks("docs/client.md", "python"):
        code = block.replace("http://127.0.0.1:8080", server.inference_url)
        exec(compile(code, "docs/client.md", "exec"), names)  # noqa: S102 - the project's own
    assert names["segmentation"].mask_of("cat").any()
    assert {path.name for path in Path().iterdir()} >= {"labels.png", "overlay.jpg", "cat.json"}
