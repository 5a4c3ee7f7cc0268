"""The model of an archive in this process: what a server of it would answer, and what it would
refuse.
"""

import inspect
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import yaml

from segserve.archive import build_archive
from segserve.client import AsyncSegmentationClient, RefusedError, Segmentation, SegmentationClient
from segserve.local import LocalSegmenter
from segserve.runtime.errors import ModelError
from segserve.runtime.inference.segmenter import Segmenter

from .tiny import write_tiny_model

IMAGE_RGB = np.random.default_rng(1).integers(0, 256, (48, 80, 3), np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def segmenter(folder):
    with LocalSegmenter(folder, device="cpu") as segmenter:
        yield segmenter


def test_segment_gives_the_segmenter_s_label_map(folder, segmenter):
    segmentation = segmenter.segment(IMAGE_RGB)
    assert isinstance(segmentation, Segmentation)
    assert np.array_equal(
        segmentation.label_map, Segmenter.load(folder).segment(IMAGE_RGB).label_map
    )
    assert (segmentation.model, segmentation.model_version) == ("tiny", "1.0")
    assert segmentation.timings_ms.keys() == {"decode", "preprocess", "inference", "encode"}


def test_segment_archive_gives_what_its_folder_gives(folder, segmenter, tmp_path):
    local = LocalSegmenter(str(build_archive(folder, tmp_path)), device="cpu")
    for options in ({}, {"mask": "polygons"}, {"mask": "none", "tta": "flip"}):
        assert local.answer(IMAGE_RGB, **options) == segmenter.answer(IMAGE_RGB, **options)


def test_segment_options_are_those_of_a_server(segmenter):
    everything, kept = (
        segmenter.segment(IMAGE_RGB),
        segmenter.segment(IMAGE_RGB, classes=["dog"], confidence=True),
    )
    assert np.array_equal(kept.label_map, np.where(everything.label_map == 2, 2, 0))
    assert kept.confidence_map.shape == (48, 80)


def test_segment_many_threads_get_the_same(segmenter):
    expected = segmenter.segment(IMAGE_RGB).label_map
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(segmenter.segment, [IMAGE_RGB] * 8))
    assert all(np.array_equal(answer.label_map, expected) for answer in answers)


@pytest.mark.parametrize("method", ["segment", "answer"])
def test_every_way_to_ask_takes_the_same_arguments(method):
    ways = SegmentationClient, AsyncSegmentationClient, LocalSegmenter
    assert len({str(inspect.signature(getattr(way, method))) for way in ways}) == 1


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
def test_segment_what_a_server_refuses_is_refused(segmenter, image, options, message):
    with pytest.raises(RefusedError, match=message):
        segmenter.segment(image, **options)


def test_segmenter_keeps_the_limits_of_the_archive(folder, tmp_path):
    model = tmp_path / "tiny"
    model.symlink_to(folder)
    (tmp_path / "model-config.yaml").write_text(
        yaml.safe_dump({"handler": {"max_image_pixels": 100}})
    )
    local = LocalSegmenter(build_archive(model, tmp_path / "out"))
    with pytest.raises(RefusedError, match=r"^413 image_too_large"):
        local.segment(IMAGE_RGB)


@pytest.mark.parametrize("kind", ["missing", "text", "empty folder"])
def test_segmenter_of_what_is_no_model_raises(tmp_path, kind):
    path = tmp_path / "model.mar"
    if kind == "text":
        path.write_text("no archive")
    if kind == "empty folder":
        path.mkdir()
    with pytest.raises(ModelError, match=r"model\.(mar|yaml)"):
        LocalSegmenter(path)
