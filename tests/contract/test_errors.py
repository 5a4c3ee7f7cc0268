"""Every row of the table of errors, and neighbours that are not hurt by them."""

import io
import struct
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from PIL import Image

from tests.contract.conftest import NARROW, Api
from tests.contract.images import as_base64, encoded, picture, png_declaring

PNG = encoded(picture())
ZERO_WIDTH_BMP = (
    encoded(picture(), "BMP")[:18] + struct.pack("<i", 0) + encoded(picture(), "BMP")[22:]
)

REJECTIONS = {
    "empty body": (dict(data=b""), 400, "no_image"),
    "form without the part": (dict(files={"picture": PNG}), 400, "no_image"),
    "JSON without data": (dict(json={"picture": as_base64(PNG)}), 400, "no_image"),
    "two images in a form": (dict(files=[("data", PNG), ("data", PNG)]), 400, "bad_request"),
    "an option twice in a form": (
        dict(files=[("data", PNG), ("mask", (None, "png")), ("mask", (None, "rle"))]),
        400,
        "bad_request",
    ),
    "animated AVIF": (dict(data=b"\0\0\0\x18ftypavis" + bytes(99)), 415, "image_unsupported"),
    "empty base64": (dict(json={"data": ""}), 400, "no_image"),
    "unknown header option": (
        dict(data=PNG, headers={"X-Segment-Colour": "red"}),
        400,
        "bad_option",
    ),
    "unknown form field": (dict(files={"data": PNG}, data={"colour": "red"}), 400, "bad_option"),
    "unknown JSON member": (dict(json={"data": as_base64(PNG), "colour": 1}), 400, "bad_option"),
    "unknown value": (dict(data=PNG, headers={"X-Segment-Mask": "jpeg2000"}), 400, "bad_option"),
    "value of a wrong type": (dict(json={"data": as_base64(PNG), "mask": 7}), 400, "bad_option"),
    "JSON that does not parse": (
        dict(data=b'{"data": ', headers={"Content-Type": "application/json"}),
        400,
        "bad_json",
    ),
    "JSON list": (dict(json=[1, 2]), 400, "bad_json"),
    "base64 that does not parse": (dict(json={"data": "@@@"}), 400, "bad_base64"),
    "Accept that cannot be met": (
        dict(data=PNG, headers={"Accept": "video/mp4"}),
        406,
        "not_acceptable",
    ),
    "text": (dict(data=b"this is no picture"), 415, "image_unsupported"),
    "truncated PNG": (dict(data=encoded(picture(300, 200))[:-200]), 422, "image_truncated"),
    "truncated JPEG": (
        dict(data=encoded(picture(300, 200), "JPEG")[:-500]),
        422,
        "image_truncated",
    ),
    "header alone": (dict(data=PNG[:20]), 422, "image_truncated"),
    "zero width": (dict(data=ZERO_WIDTH_BMP), 422, "image_corrupt"),
    "16 megapixels and one row": (
        dict(data=encoded(Image.new("1", (4096, 4097)))),
        413,
        "image_too_large",
    ),
    "100,000 x 100,000 declared": (
        dict(data=png_declaring(100_000, 100_000)),
        413,
        "image_too_large",
    ),
}


@pytest.mark.parametrize(("parts", "status", "code"), REJECTIONS.values(), ids=REJECTIONS.keys())
def test_predictions_bad_request_is_rejected_with_status_code_and_message(
    api: Api, parts, status, code
):
    response = api.post(**parts)
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"].split(";")[0] == "application/json"
    assert response.json().keys() == {"error"}
    assert response.json()["error"]["code"] == code
    assert len(response.json()["error"]["message"]) > 20


def test_predictions_unknown_value_names_the_allowed_ones(api: Api):
    message = api.post(data=PNG, headers={"X-Segment-Mask": "jpeg2000"}).json()["error"]["message"]
    assert all(word in message for word in ("jpeg2000", "dense", "rle", "png", "polygons", "none"))


def test_predictions_more_bytes_than_the_server_takes_is_413(api: Api):
    assert api.post(data=bytes(64 * 2**20 + 1)).status_code == 413


def test_predictions_response_above_the_limit_is_413_that_names_what_fits(api: Api):
    response = api.post(
        NARROW, data=encoded(picture(400, 400)), headers={"X-Segment-Mask": "dense"}
    )
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (413, "answer_too_large")
    assert "mask=png" in error["message"]
    assert (
        api.post(
            NARROW, data=encoded(picture(400, 400)), headers={"X-Segment-Mask": "png"}
        ).status_code
        == 200
    )


def test_predictions_image_that_needs_more_memory_than_there_is_is_507(api: Api):
    response = api.post(NARROW, data=encoded(Image.new("L", (1_000_000, 1))))
    assert (response.status_code, response.json()["error"]["code"]) == (507, "out_of_memory")
    assert api.post(NARROW, data=PNG).status_code == 200


def test_predictions_more_requests_than_the_queue_holds_get_503_and_the_rest_are_served(
    api: Api,
):
    image = encoded(picture(1200, 900))
    with ThreadPoolExecutor(16) as pool:
        statuses = list(pool.map(lambda _: api.post(NARROW, data=image).status_code, range(32)))
    assert set(statuses) == {200, 503}
    assert api.post(NARROW, data=PNG).status_code == 200


def test_predictions_good_and_bad_requests_at_once_get_separate_responses(api: Api, photographs):
    good = api.post(data=photographs["chelsea"]).content
    bad = {status: parts for parts, status, _ in REJECTIONS.values() if status != 413}
    mixed = [(200, dict(data=photographs["chelsea"])), *bad.items()] * 6
    with ThreadPoolExecutor(12) as pool:
        responses = list(pool.map(lambda item: api.post(**item[1]), mixed))
    assert [response.status_code for response in responses] == [status for status, _ in mixed]
    assert {response.content for response in responses if response.ok} == {good}


@pytest.mark.parametrize(
    "headers", [{}, {"Authorization": "Bearer wrong"}], ids=["no token", "wrong token"]
)
def test_predictions_without_the_token_are_rejected(api: Api, headers):
    response = requests.post(
        f"{api.inference_url}/predictions/deeplabv3", data=PNG, headers=headers, timeout=30
    )
    assert response.status_code == 400
    assert "token" in response.json()["message"].lower()


def test_predictions_of_an_unknown_model_are_404(api: Api):
    assert api.post("absent", data=PNG).status_code == 404


def test_register_of_a_model_is_rejected(api: Api):
    response = requests.post(
        f"{api.inference_url}/models?url=other.mar", headers=api.headers, timeout=30
    )
    assert response.status_code in (403, 405)


def test_predictions_png_of_the_largest_size_gets_a_response(api: Api):
    """16 megapixels as dense JSON: the largest response within the limits."""
    response = api.post(data=encoded(Image.new("RGB", (4096, 4096), (120, 90, 60)), "JPEG"))
    assert response.status_code == 200, response.text[:300]
    assert len(response.content) > 2 * 4096 * 4096
    response = api.post(
        data=encoded(Image.new("RGB", (4096, 4096))), headers={"Accept": "image/png"}
    )
    with Image.open(io.BytesIO(response.content)) as image:
        assert image.size == (4096, 4096)


@pytest.mark.parametrize(
    ("query", "headers"),
    [
        pytest.param("", {"X-Padding": "a" * 8_000}, id="headers"),
        pytest.param("?tta=" + "a" * 4_000, {}, id="path"),
        pytest.param("?" + "&".join(f"a{n}=" for n in range(500)), {}, id="options-as-headers"),
    ],
)
def test_predictions_head_that_torchserve_cannot_read_is_rejected(api: Api, query, headers):
    for _ in range(20):  # TorchServe responds to some
        response = api.post(f"deeplabv3{query}", data=PNG, headers=headers)
        assert (response.status_code, response.json()["error"]["code"]) == (400, "bad_request")
        assert response.json()["error"]["message"].endswith(("is 4000", "is 7680"))


def test_predictions_largest_head_gets_a_response(api: Api):
    names = {"X-Segment-Classes": ",".join(["cat"] * 1_700)}
    assert api.post(data=PNG, headers=names).status_code == 200
    query = "?classes=" + ",".join(["cat"] * 980)
    assert api.post(f"deeplabv3{query}", data=PNG).status_code == 200
