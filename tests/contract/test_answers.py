"""What comes back: the JSON document, the encodings, the media types, the headers."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from segserve.runtime.record import read_record
from tests.conftest import EMBEDDED
from tests.contract.conftest import Api
from tests.contract.images import encoded, picture

RECORD = read_record(EMBEDDED)


def label_map_of(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as image:
        assert image.mode == "P"
        return np.array(image)


def test_predictions_document_has_the_members_of_the_contract(api: Api, photographs):
    document = api.post(data=photographs["chelsea"]).json()
    assert document.keys() == {"model", "width", "height", "classes", "mask"}
    assert document["model"] == {"name": RECORD.name, "version": RECORD.version}
    assert (document["width"], document["height"]) == (451, 300)
    assert document["mask"].keys() == {"encoding", "data"}
    label_map = np.array(document["mask"]["data"])
    assert label_map.shape == (300, 451)
    assert sorted(entry["id"] for entry in document["classes"]) == np.unique(label_map).tolist()


def test_predictions_classes_summarise_the_mask(api: Api, photographs):
    document = api.post(data=photographs["astronaut"]).json()
    label_map = np.array(document["mask"]["data"])
    counts = [entry["pixels"] for entry in document["classes"]]
    assert counts == sorted(counts, reverse=True)
    for entry in document["classes"]:
        assert entry.keys() == {"id", "label", "color", "pixels", "fraction", "box", "confidence"}
        info = RECORD.classes[entry["id"]]
        rows, columns = np.nonzero(label_map == entry["id"])
        assert (entry["label"], tuple(entry["color"])) == (info.label, info.color)
        assert entry["pixels"] == len(rows)
        assert entry["fraction"] == pytest.approx(len(rows) / label_map.size, abs=1e-6)
        assert entry["box"] == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert 1 / len(RECORD.classes) <= entry["confidence"] <= 1


def test_predictions_all_encodings_hold_the_same_mask(api: Api, photographs):
    image = photographs["chelsea"]
    dense = np.array(api.post(data=image).json()["mask"]["data"])
    in_json = api.post(data=image, headers={"X-Segment-Mask": "png"}).json()["mask"]
    assert in_json["encoding"] == "png"
    as_png = api.post(data=image, headers={"Accept": "image/png"})
    as_npy = api.post(data=image, headers={"Accept": "application/x-npy"})
    npy = np.load(io.BytesIO(as_npy.content), allow_pickle=False)
    assert npy.dtype == np.uint8
    np.testing.assert_array_equal(label_map_of(base64.b64decode(in_json["data"])), dense)
    np.testing.assert_array_equal(label_map_of(as_png.content), dense)
    np.testing.assert_array_equal(npy, dense)


def test_predictions_png_carries_the_palette_of_the_record(api: Api, photographs):
    with Image.open(
        io.BytesIO(api.post(data=photographs["chelsea"], headers={"Accept": "image/png"}).content)
    ) as image:
        assert bytes(image.getpalette())[: len(RECORD.palette)] == RECORD.palette


def test_predictions_jpeg_is_a_picture_of_the_same_size(api: Api, photographs):
    response = api.post(data=photographs["chelsea"], headers={"Accept": "image/jpeg"})
    with Image.open(io.BytesIO(response.content)) as image:
        assert (image.format, image.size) == ("JPEG", (451, 300))


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("application/json", "application/json"),
        ("*/*", "application/json"),
        ("", "application/json"),
        ("image/png", "image/png"),
        ("image/jpeg", "image/jpeg"),
        ("application/x-npy", "application/x-npy"),
        ("image/*", "image/png"),
        ("text/html, image/jpeg;q=0.5, image/png;q=0.9", "image/png"),
    ],
)
def test_predictions_accept_decides_the_media_type(api: Api, accept, media_type):
    response = api.post(data=encoded(picture()), headers={"Accept": accept})
    assert response.status_code == 200
    assert response.headers["Content-Type"].split(";")[0] == media_type


@pytest.mark.parametrize("size", [(1, 1), (2000, 3), (3, 2000), (33, 31)], ids=str)
def test_predictions_mask_has_the_size_of_the_image(api: Api, size):
    response = api.post(data=encoded(picture(*size)), headers={"Accept": "application/x-npy"})
    assert np.load(io.BytesIO(response.content)).shape == (size[1], size[0])


def test_predictions_turned_image_gets_an_upright_mask(api: Api):
    turned = Image.Exif()
    turned[0x0112] = 6
    document = api.post(data=encoded(picture(64, 48), "JPEG", exif=turned)).json()
    assert (document["width"], document["height"]) == (48, 64)


def test_predictions_response_carries_the_server_timing_of_every_stage(api: Api):
    timing = api.post(data=encoded(picture())).headers["Server-Timing"]
    assert re.findall(r"(\w+);dur=[\d.]+", timing) == [
        "decode",
        "preprocess",
        "inference",
        "encode",
    ]


def test_predictions_same_image_twice_gives_the_same_bytes(api: Api, photographs):
    assert (
        api.post(data=photographs["chelsea"]).content
        == api.post(data=photographs["chelsea"]).content
    )


def test_describe_reports_what_the_model_is_and_accepts(api: Api):
    [document] = [api.describe().json()]
    reported = document[0]["customizedMetadata"] if isinstance(document, list) else document
    assert reported["name"] == RECORD.name
    assert [entry["label"] for entry in reported["classes"]] == list(RECORD.labels)
    assert reported["input"]["resize"]["size_px"] == RECORD.input.resize.size_px
    assert reported["options"]["mask"]["enum"] == ["dense", "rle", "png", "polygons", "none"]
    assert reported["limits"]["max_image_pixels"] == 2**26


def test_predictions_with_a_describe_header_of_the_client_are_segmented(api: Api):
    response = api.post(data=encoded(picture()), headers={"describe": "True"})
    assert response.json()["width"] == 64
