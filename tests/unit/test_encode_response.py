"""Documents, limits and media types of responses."""

import base64
import io
import json
import re
from typing import get_args

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from pycocotools import mask as coco_mask

from segserve.runtime.encode.response import (
    JsonResponse,
    Response,
    encode_response,
    error_response,
    json_bytes,
)
from segserve.runtime.errors import ResponseTooLargeError, SegserveError
from segserve.runtime.inference.labels import SegmentedImage
from segserve.runtime.request import SegmentRequest
from segserve.runtime.telemetry import Interval, RequestStats, Timings
from segserve.schema.request import MaskEncoding, MediaType, Options
from segserve.schema.response import ClassArea

from .test_polygons import redrawn
from .tiny import CLASSES, tiny_record

RECORD = tiny_record()
NO_LIMIT = 2**40

label_maps = hnp.arrays(
    np.uint8,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=24),
    elements=st.integers(0, len(CLASSES) - 1),
)


def segmentation_of(label_map: np.ndarray) -> SegmentedImage:
    summaries = []
    for class_id, pixels in zip(*np.unique(label_map, return_counts=True), strict=True):
        ys, xs = np.nonzero(label_map == class_id)
        box = (int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1)
        summaries.append(
            ClassArea(
                id=int(class_id),
                pixels=int(pixels),
                fraction=pixels / label_map.size,
                box_xyxy=box,
                confidence=2 / 3,
            )
        )
    classes = tuple(sorted(summaries, key=lambda summary: -summary.pixels))
    return SegmentedImage(label_map, classes, confidence_of(label_map))


def confidence_of(label_map: np.ndarray) -> np.ndarray:
    """uint8 (H, W): another value for every pixel."""
    return np.arange(label_map.size, dtype=np.uint8).reshape(label_map.shape)


def encode(
    label_map,
    *,
    mask="dense",
    confidence=False,
    media_type=MediaType.JSON,
    max_bytes=NO_LIMIT,
    record=RECORD,
) -> bytes:
    image = np.zeros((*label_map.shape, 3), np.uint8)
    request = SegmentRequest(b"", Options(mask=mask, confidence=confidence), media_type)
    return encode_response(request, image, segmentation_of(label_map), record, max_bytes)


def data_of(label_map: np.ndarray, mask: str) -> dict:
    return json.loads(encode(label_map, mask=mask))["mask"]["data"]


def put_together(size_hw: tuple[int, int], data: dict, mask_of) -> np.ndarray:
    """The label map of the masks of its classes, which cover every pixel once."""
    masks = {int(class_id): mask_of(encoded) for class_id, encoded in data.items()}
    assert (sum(masks.values()) == np.ones(size_hw)).all()
    return sum(class_id * mask for class_id, mask in masks.items())


def masks_of(label_map: np.ndarray) -> list[np.ndarray]:
    dense = json.loads(encode(label_map))["mask"]["data"]
    png = base64.b64decode(json.loads(encode(label_map, mask="png"))["mask"]["data"], validate=True)
    return [
        np.array(dense),
        put_together(label_map.shape, data_of(label_map, "rle"), lambda rle: coco_mask.decode(rle)),
        put_together(
            label_map.shape,
            data_of(label_map, "polygons"),
            lambda polygons: redrawn(polygons, label_map.shape),
        ),
        np.array(Image.open(io.BytesIO(png))),
        np.array(Image.open(io.BytesIO(encode(label_map, media_type=MediaType.PNG)))),
        np.load(io.BytesIO(encode(label_map, media_type=MediaType.NPY)), allow_pickle=False),
    ]


@given(label_maps)
def test_encode_response_every_encoding_holds_the_same_mask(label_map):
    for mask in masks_of(label_map):
        assert np.array_equal(mask, label_map)


@pytest.mark.parametrize(
    "label_map",
    [np.pad(np.array([[2]], np.uint8), 9), np.full((7, 9), 1, np.uint8), np.array([[2]], np.uint8)],
    ids=["one pixel of a class", "one class everywhere", "one pixel"],
)
def test_encode_response_lone_class_is_held_by_every_encoding(label_map):
    for mask in masks_of(label_map):
        assert np.array_equal(mask, label_map)


def test_encode_response_document_is_exactly_that_of_the_contract():
    label_map = np.array([[0, 0, 0, 2], [0, 0, 2, 2], [0, 0, 0, 1]], np.uint8)
    assert json.loads(encode(label_map)) == {
        "model": {"name": "tiny", "version": "1.0"},
        "width": 4,
        "height": 3,
        "classes": [
            {
                "id": class_id,
                "label": CLASSES[class_id][0],
                "color": list(CLASSES[class_id][1]),
                "pixels": pixels,
                "fraction": round(pixels / 12, 6),
                "box": box,
                "confidence": 0.6667,
            }
            for class_id, pixels, box in (
                (0, 8, [0, 0, 3, 3]),
                (2, 3, [2, 0, 4, 2]),
                (1, 1, [3, 2, 4, 3]),
            )
        ],
        "mask": {"encoding": "dense", "data": label_map.tolist()},
    }


def test_encode_response_mask_none_differs_only_by_the_missing_mask():
    label_map = np.eye(5, dtype=np.uint8)
    dense = json.loads(encode(label_map))
    del dense["mask"]
    assert json.loads(encode(label_map, mask="none")) == dense


@given(label_maps, st.sampled_from(get_args(MaskEncoding)), st.booleans())
def test_encode_response_limit_is_exact(label_map, mask, confidence):
    requested = {"mask": mask, "confidence": confidence}
    size_bytes = len(encode(label_map, **requested))
    assert len(encode(label_map, **requested, max_bytes=size_bytes)) == size_bytes
    reported = f"mask={mask} confidence=true" if confidence else f"mask={mask}"
    expected = (
        f"^the response as {reported} would take {size_bytes} bytes, the limit is {size_bytes - 1};"
    )
    with pytest.raises(ResponseTooLargeError, match=expected):
        encode(label_map, **requested, max_bytes=size_bytes - 1)


def test_encode_response_dense_above_the_limit_is_never_made(monkeypatch):
    monkeypatch.setattr(JsonResponse, "body", lambda *_, **__: pytest.fail("the body was made"))
    with pytest.raises(ResponseTooLargeError, match="mask=dense would take"):
        encode(np.zeros((90, 90), np.uint8), max_bytes=1000)


@pytest.mark.parametrize("mask", get_args(MaskEncoding))
def test_encode_response_confidence_is_a_grey_png_beside_the_mask(mask):
    label_map = np.eye(20, dtype=np.uint8)
    document = json.loads(encode(label_map, mask=mask, confidence=True))
    assert document["confidence"].keys() == {"encoding", "data"}
    picture = Image.open(
        io.BytesIO(base64.b64decode(document["confidence"].pop("data"), validate=True))
    )
    assert (picture.mode, document.pop("confidence")) == ("L", {"encoding": "png"})
    assert np.array_equal(np.array(picture), confidence_of(label_map))
    assert document == json.loads(encode(label_map, mask=mask))


@pytest.mark.parametrize("mask", ["rle", "polygons"])
def test_encode_response_masks_have_the_classes_of_the_table(mask):
    document = json.loads(encode(np.array([[0, 0, 2]], np.uint8), mask=mask))
    assert (
        list(document["mask"]["data"])
        == [str(entry["id"]) for entry in document["classes"]]
        == ["0", "2"]
    )


@pytest.mark.parametrize(
    "media_type", [MediaType.PNG, MediaType.JPEG, MediaType.NPY], ids=lambda kind: kind.name
)
def test_encode_response_limit_of_other_types_is_exact(media_type):
    label_map = np.eye(40, dtype=np.uint8)
    size_bytes = len(encode(label_map, media_type=media_type))
    assert len(encode(label_map, media_type=media_type, max_bytes=size_bytes)) == size_bytes
    with pytest.raises(
        ResponseTooLargeError,
        match=f"^the response as Accept: {media_type} would take {size_bytes} bytes",
    ):
        encode(label_map, media_type=media_type, max_bytes=size_bytes - 1)


WAYS = {
    **{f"mask={mask}": {"mask": mask} for mask in get_args(MaskEncoding)},
    "Accept: application/x-npy": {"media_type": MediaType.NPY},
    "Accept: image/png": {"media_type": MediaType.PNG},
}
WAYS_WITH_CONFIDENCE = {
    **{
        f"mask={mask} confidence=true": {"mask": mask, "confidence": True}
        for mask in get_args(MaskEncoding)
    },
    **WAYS,
}


@given(label_maps, st.booleans(), st.data())
def test_encode_response_above_the_limit_names_what_fits_with_true_sizes(
    label_map, confidence, data
):
    ways = WAYS_WITH_CONFIDENCE if confidence else WAYS
    true_bytes = {name: len(encode(label_map, **way)) for name, way in ways.items()}
    limit_bytes = data.draw(st.sampled_from(sorted(set(true_bytes.values()))))
    assume(limit_bytes < true_bytes["mask=dense confidence=true" if confidence else "mask=dense"])
    with pytest.raises(ResponseTooLargeError, match="these fit: ") as caught:
        encode(label_map, confidence=confidence, max_bytes=limit_bytes)
    named = re.findall(
        r"((?:mask=|Accept: )[^,(]+) \((\d+) bytes\)", str(caught.value).partition("these fit: ")[2]
    )
    assert {name: int(size) for name, size in named} == {
        name: size for name, size in true_bytes.items() if size <= limit_bytes
    }


def test_encode_response_limit_below_everything_says_so():
    with pytest.raises(
        ResponseTooLargeError, match="these fit: none, send a smaller image"
    ) as caught:
        encode(np.eye(30, dtype=np.uint8), max_bytes=10)
    assert (caught.value.status, caught.value.code) == (413, "answer_too_large")


@pytest.mark.parametrize("size_hw", [(1, 65_501), (65_501, 1)], ids=["wide", "tall"])
def test_encode_response_jpeg_above_the_format_limit_raises(size_hw):
    with pytest.raises(
        ResponseTooLargeError, match="end at 65500 pixels; request image/png or application/json"
    ):
        encode(np.zeros(size_hw, np.uint8), media_type=MediaType.JPEG)
    assert encode(np.zeros((1, 65_500), np.uint8), media_type=MediaType.JPEG).startswith(
        b"\xff\xd8"
    )


@pytest.mark.parametrize("text", ["plain", 'quote " and \\', "ä€\u2028", "line\nbreak"], ids=ascii)
def test_error_response_any_message_is_json(text):
    reply = error_response(SegserveError(text))
    assert json.loads(reply.body) == {"error": {"code": "internal_error", "message": text}}
    assert (reply.status, reply.media_type) == (500, "application/json")


def test_server_timing_lists_stages_in_ms():
    timings = Timings(
        [
            Interval("decode", 1.0, 1.0012),
            Interval("inference", 2.0, 3.0),
            Interval("inference", 4.0, 4.5),
        ]
    )
    reply = Response(b"", MediaType.JSON, stats=RequestStats(timings))
    assert reply.server_timing == "decode;dur=1.20, inference;dur=1500.00"


def test_server_timing_describes_a_stage_that_has_a_description():
    intervals = [Interval("inference", 0, 1.5), Interval("encode", 2, 2.001)]
    reply = Response(
        b"", MediaType.JSON, stats=RequestStats(Timings(intervals, {"inference": "2.0 passes"}))
    )
    assert reply.server_timing == 'inference;dur=1500.00;desc="2.0 passes", encode;dur=1.00'


def test_json_bytes_keeps_labels_of_other_scripts():
    assert json.loads(json_bytes({"label": "katze 猫"})) == {"label": "katze 猫"}
