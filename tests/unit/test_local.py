"""The model of an archive in this process: the results and errors of a server of it."""

import inspect
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import yaml

from segserve.archive import build_archive
from segserve.client import AsyncSegmentationClient, ResponseError, Segmentation, SegmentationClient
from segserve.client.response import HttpResponse, read_segmentation
from segserve.local import LocalSegmenter
from segserve.runtime.errors import ModelError
from segserve.runtime.inference.segmenter import Segmenter
from segserve.runtime.record import read_record
from tests.conftest import EMBEDDED

from .canned import as_file
from .tiny import write_tiny_model

IMAGE_RGB = np.random.default_rng(1).integers(0, 256, (48, 80, 3), np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def segmenter(folder):
    with LocalSegmenter(folder, device="cpu") as segmenter:
        yield segmenter


def test_segment_returns_the_label_map_of_the_segmenter(folder, segmenter):
    segmentation = segmenter.segment(IMAGE_RGB)
    assert isinstance(segmentation, Segmentation)
    assert np.array_equal(
        segmentation.label_map, Segmenter.load(folder).segment(IMAGE_RGB).label_map
    )
    assert (segmentation.model, segmentation.model_version) == ("tiny", "1.0")
    assert segmentation.timings_ms.keys() == {"decode", "preprocess", "inference", "encode"}


def test_segment_raw_of_an_archive_equals_that_of_its_folder(folder, segmenter, tmp_path):
    local = LocalSegmenter(str(build_archive(folder, tmp_path)), device="cpu")
    for options in ({}, {"mask": "polygons"}, {"mask": "none", "tta": "flip"}):
        assert local.segment_raw(IMAGE_RGB, **options) == segmenter.segment_raw(
            IMAGE_RGB, **options
        )


def test_segment_applies_the_options(segmenter):
    everything, kept = (
        segmenter.segment(IMAGE_RGB),
        segmenter.segment(IMAGE_RGB, classes=["dog"], confidence=True),
    )
    assert np.array_equal(kept.label_map, np.where(everything.label_map == 2, 2, 0))
    assert kept.confidence_map.shape == (48, 80)


@pytest.mark.parametrize(
    "options",
    [{}, {"confidence": True, "tta": "flip"}, {"classes": ["dog"], "threshold": 0.4}],
    ids=["defaults", "confidence", "classes"],
)
def test_segment_equals_the_result_read_from_the_response_of_a_server(segmenter, options):
    image_file = as_file(IMAGE_RGB)
    body = segmenter.segment_raw(image_file, mask="png", **options)
    expected = read_segmentation(HttpResponse(200, "OK", body), image_file)
    result = segmenter.segment(image_file, **options)
    assert np.array_equal(result.label_map, expected.label_map)
    assert np.array_equal(result.confidence_map, expected.confidence_map)
    assert not result.label_map.flags.writeable
    for name in ("classes", "model", "model_version", "palette", "image_file"):
        assert getattr(result, name) == getattr(expected, name)


def test_segment_failure_of_the_network_raises_an_internal_error(folder, monkeypatch):
    segmenter = LocalSegmenter(folder, device="cpu")
    monkeypatch.setattr(Segmenter, "segment", lambda *_, **__: 1 / 0)
    with pytest.raises(ResponseError, match=r"^500 internal_error: the server failed"):
        segmenter.segment(IMAGE_RGB)


def test_segment_from_many_threads_returns_the_same(segmenter):
    expected = segmenter.segment(IMAGE_RGB).label_map
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(segmenter.segment, [IMAGE_RGB] * 8))
    assert all(np.array_equal(result.label_map, expected) for result in results)


@pytest.mark.parametrize("method", ["segment", "segment_raw"])
def test_clients_and_local_segmenter_have_the_same_signature(method):
    clients = SegmentationClient, AsyncSegmentationClient, LocalSegmenter
    assert len({str(inspect.signature(getattr(client, method))) for client in clients}) == 1


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (b"no image", {}, "^415 image_unsupported: not an image"),
        (b"", {}, "^400 no_image"),
        (IMAGE_RGB, {"mode": "bogus"}, "^400 bad_option: option mode"),
        (IMAGE_RGB, {"classes": "unicorn"}, "^400 bad_option: option classes: got 'unicorn'"),
    ],
    ids=["text", "empty", "unknown mode", "unknown class"],
)
def test_segment_invalid_request_raises_the_error_of_a_server(segmenter, image, options, message):
    with pytest.raises(ResponseError, match=message):
        segmenter.segment(image, **options)


def test_segmenter_applies_the_limits_of_the_archive(folder, tmp_path):
    model = tmp_path / "tiny"
    model.symlink_to(folder)
    (tmp_path / "model-config.yaml").write_text(
        yaml.safe_dump({"handler": {"max_image_pixels": 100}})
    )
    local = LocalSegmenter(build_archive(model, tmp_path / "out"))
    with pytest.raises(ResponseError, match=r"^413 image_too_large"):
        local.segment(IMAGE_RGB)


def test_segmenter_computes_with_the_threads_of_the_settings(folder, tmp_path, monkeypatch):
    model = tmp_path / "tiny"
    model.symlink_to(folder)
    (tmp_path / "model-config.yaml").write_text(yaml.safe_dump({"handler": {"threads": 1}}))
    used = []
    monkeypatch.setattr("torch.set_num_threads", used.append)
    LocalSegmenter(build_archive(model, tmp_path / "out"), device="cpu")
    assert used == [1]


@pytest.mark.parametrize("kind", ["missing", "text", "empty folder"])
def test_segmenter_without_a_model_raises(tmp_path, kind):
    path = tmp_path / "model.mar"
    if kind == "text":
        path.write_text("no archive")
    if kind == "empty folder":
        path.mkdir()
    with pytest.raises(ModelError, match=r"model\.(mar|yaml)"):
        LocalSegmenter(path)


def test_segmenter_of_a_name_is_that_of_the_models_folder():
    with LocalSegmenter("embedded", device="cpu") as segmenter:
        assert segmenter.record == read_record(EMBEDDED)
