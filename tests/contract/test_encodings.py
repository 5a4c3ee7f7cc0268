"""Every encoding and option of a response over HTTP: the same mask, valid by the schema, and the
rejected combinations.
"""

import base64
import io
import json
import re

import jsonschema
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from segserve.runtime.record import read_record
from tests.conftest import EMBEDDED, PROJECT
from tests.contract.conftest import NARROW, Api
from tests.contract.images import as_base64, encoded, picture

RECORD = read_record(EMBEDDED)
SCHEMA = json.loads((PROJECT / "docs" / "response.schema.json").read_text(encoding="utf-8"))


def segmented(api: Api, image: bytes, model: str = RECORD.name, **options: object) -> dict:
    """The JSON response, validated by the schema."""
    headers = {f"X-Segment-{name.title()}": str(value) for name, value in options.items()}
    response = api.post(model, data=image, headers=headers)
    assert response.status_code == 200, response.text
    document = response.json()
    jsonschema.validate(document, SCHEMA)
    return document


def opened(data: str) -> np.ndarray:
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        return np.array(image)


def label_map_of(document: dict) -> np.ndarray:
    encoding, data = document["mask"]["encoding"], document["mask"]["data"]
    if encoding == "dense":
        return np.array(data, np.uint8)
    if encoding == "png":
        return opened(data)
    label_map = np.full((document["height"], document["width"]), 255, np.uint8)
    for class_id, mask in data.items():
        polygons = encoding == "polygons"
        rle = coco_mask.merge(coco_mask.frPyObjects(mask, *label_map.shape)) if polygons else mask
        label_map[coco_mask.decode(rle) == 1] = int(class_id)
    return label_map


@pytest.fixture(scope="module")
def plain(api: Api, photographs) -> np.ndarray:
    return label_map_of(segmented(api, photographs["chelsea"]))


@pytest.mark.parametrize(
    ("accepted", "coding"),
    [
        pytest.param("gzip, deflate, br", "gzip", id="as requests sends it"),
        pytest.param("br;q=1, GZIP;q=0.1", "gzip", id="low quality"),
        pytest.param("gzip;q=0", None, id="quality 0"),
        pytest.param("identity", None, id="identity"),
        pytest.param("br, zstd", None, id="other codings"),
        pytest.param(None, None, id="no header"),
    ],
)
def test_predictions_dense_is_compressed_for_clients_that_accept_gzip(
    api: Api, photographs, plain, accepted, coding
):
    response = api.post(data=photographs["chelsea"], headers={"Accept-Encoding": accepted})
    assert response.headers.get("Content-Encoding") == coding
    assert (int(response.headers["Content-Length"]) < len(response.content) / 10) == bool(coding)
    np.testing.assert_array_equal(label_map_of(response.json()), plain)


@pytest.mark.parametrize("accept", ["application/json", "image/png", "application/x-npy"])
def test_predictions_small_or_binary_body_is_not_compressed(api: Api, photographs, accept):
    headers = {"Accept": accept, "Accept-Encoding": "gzip", "X-Segment-Mask": "png"}
    response = api.post(data=photographs["chelsea"], headers=headers)
    assert response.status_code == 200
    assert "Content-Encoding" not in response.headers


@pytest.mark.parametrize("mask", ["rle", "png", "polygons"])
def test_predictions_encoding_holds_the_mask_of_dense(api: Api, photographs, plain, mask):
    document = segmented(api, photographs["chelsea"], mask=mask)
    assert document["mask"]["encoding"] == mask
    np.testing.assert_array_equal(label_map_of(document), plain)
    if mask != "png":
        assert list(document["mask"]["data"]) == [str(entry["id"]) for entry in document["classes"]]


def test_predictions_confidence_is_a_grey_png_that_the_table_agrees_with(
    api: Api, photographs, plain
):
    document = segmented(api, photographs["chelsea"], mask="none", confidence="true")
    confidence = opened(document["confidence"]["data"])
    assert (confidence.shape, confidence.dtype) == (plain.shape, np.uint8)
    for entry in document["classes"]:
        assert confidence[plain == entry["id"]].mean() / 255 == pytest.approx(
            entry["confidence"], abs=0.003
        )


def test_predictions_threshold_and_confidence_agree(api: Api, photographs, plain):
    document = segmented(api, photographs["chelsea"], confidence="true", threshold=0.9)
    label_map, confidence = label_map_of(document), opened(document["confidence"]["data"]) / 255
    assert (label_map[confidence < 0.895] == 0).all()
    certain = confidence > 0.905
    np.testing.assert_array_equal(label_map[certain], plain[certain])
    assert np.count_nonzero(label_map) < np.count_nonzero(plain)


@pytest.mark.parametrize(
    "classes", ["cat", "8", "dog, cat", '["cat"]'], ids=["label", "id", "list", "JSON list"]
)
def test_predictions_classes_that_are_kept_stay_as_they_are(api: Api, photographs, plain, classes):
    document = segmented(api, photographs["chelsea"], classes=classes, mask="rle")
    assert {entry["label"] for entry in document["classes"]} == {"background", "cat"}
    np.testing.assert_array_equal(label_map_of(document), np.where(plain == 8, 8, 0))


def test_predictions_classes_that_are_not_kept_are_background_in_every_response(
    api: Api, photographs
):
    document = segmented(api, photographs["chelsea"], classes="dog")
    [entry] = document["classes"]
    assert (entry["label"], entry["fraction"], entry["box"]) == ("background", 1, [0, 0, 451, 300])
    headers = {"Accept": "application/x-npy", "X-Segment-Classes": "dog"}
    assert not np.load(
        io.BytesIO(api.post(data=photographs["chelsea"], headers=headers).content)
    ).any()


def test_predictions_options_that_change_nothing_give_the_same_bytes(api: Api, photographs):
    everything = {"X-Segment-Classes": ",".join(RECORD.labels), "X-Segment-Threshold": "0"}
    assert (
        api.post(data=photographs["chelsea"], headers=everything).content
        == api.post(data=photographs["chelsea"]).content
    )


OPTIONS = {"mask": "rle", "classes": "cat,15", "threshold": "0.8", "confidence": "true"}
WAYS = {
    "headers": lambda image: {
        "data": image,
        "headers": {f"X-Segment-{k.title()}": v for k, v in OPTIONS.items()},
    },
    "headers in lower case": lambda image: {
        "data": image,
        "headers": {f"x-segment-{k}": v for k, v in OPTIONS.items()},
    },
    "form fields": lambda image: {"files": {"data": image}, "data": OPTIONS},
    "JSON members": lambda image: {
        "json": {
            "data": as_base64(image),
            "mask": "rle",
            "classes": ["cat", 15],
            "threshold": 0.8,
            "confidence": True,
        }
    },
    "JSON members as text": lambda image: {"json": {"data": as_base64(image), **OPTIONS}},
}


def test_predictions_options_by_every_way_give_the_same_bytes(api: Api, photographs):
    responses = {name: api.post(**way(photographs["chelsea"])) for name, way in WAYS.items()}
    assert {name: response.status_code for name, response in responses.items()} == dict.fromkeys(
        WAYS, 200
    )
    assert len({response.content for response in responses.values()}) == 1


PNG = encoded(picture())
REJECTIONS = {
    "unknown class": (
        {"classes": "ct"},
        "got 'ct'; the classes are: 0 background, 1 aeroplane",
    ),
    "unknown id": ({"classes": "21"}, "got '21'; the classes are: 0 background"),
    "no class": ({"classes": ","}, "expected at least one class"),
    "broken list": ({"classes": '["cat"'}, "expected a JSON list"),
    "threshold above 1": (
        {"threshold": "1.5"},
        "got '1.5'; input should be less than or equal to 1",
    ),
    "threshold that is no number": (
        {"threshold": "half"},
        "got 'half'; input should be a valid number",
    ),
    "threshold nan": ({"threshold": "nan"}, "got 'nan'; input should be"),
    "confidence that is neither": (
        {"confidence": "maybe"},
        "got 'maybe'; input should be a valid boolean",
    ),
    "unknown encoding": ({"mask": "cocojson"}, "'dense', 'rle', 'png', 'polygons' or 'none'"),
}


@pytest.mark.parametrize(("options", "reported"), REJECTIONS.values(), ids=REJECTIONS.keys())
@pytest.mark.parametrize("way", ["headers", "form"])
def test_predictions_bad_value_is_400_that_says_what_is_allowed(api: Api, options, reported, way):
    if way == "headers":
        response = api.post(
            data=PNG,
            headers={f"X-Segment-{name.title()}": value for name, value in options.items()},
        )
    else:
        response = api.post(files={"data": PNG}, data=options)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "bad_option")
    assert f"option {next(iter(options))}: " in error["message"]
    assert reported in error["message"]


def test_predictions_confidence_of_a_picture_is_400(api: Api):
    response = api.post(data=PNG, headers={"X-Segment-Confidence": "true", "Accept": "image/png"})
    assert (response.status_code, response.json()["error"]["code"]) == (400, "bad_option")
    assert "only application/json can contain it" in response.json()["error"]["message"]


def test_predictions_response_above_the_limit_names_encodings_whose_sizes_are_true(api: Api):
    image = encoded(picture(400, 400))
    response = api.post(NARROW, data=image, headers={"X-Segment-Mask": "dense"})
    assert response.status_code == 413
    fitting = dict(re.findall(r"mask=(\w+) \((\d+) bytes\)", response.json()["error"]["message"]))
    assert set(fitting) == {"rle", "png", "polygons", "none"}
    for mask, size_bytes in fitting.items():
        assert len(api.post(NARROW, data=image, headers={"X-Segment-Mask": mask}).content) == int(
            size_bytes
        )
