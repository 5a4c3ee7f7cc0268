"""The ways in which an image and its options may arrive."""

import pytest
import requests

from tests.contract.conftest import Api
from tests.contract.images import FORMATS, as_base64, encoded, picture

SENDERS = {
    "raw body": lambda image: {"data": image},
    "form part data": lambda image: {"files": {"data": ("picture", image)}},
    "form part body": lambda image: {"files": {"body": ("picture", image)}},
    "JSON base64": lambda image: {"json": {"data": as_base64(image)}},
    "JSON data URI": lambda image: {"json": {"data": f"data:image/png;base64,{as_base64(image)}"}},
}


@pytest.mark.parametrize("sender", SENDERS.values(), ids=SENDERS.keys())
@pytest.mark.parametrize("file_format", FORMATS)
def test_predictions_image_in_any_format_by_any_way_is_segmented(api: Api, sender, file_format):
    response = api.post(**sender(encoded(picture(), file_format)))
    assert response.status_code == 200, response.text
    document = response.json()
    assert (document["width"], document["height"]) == (64, 48)
    assert sum(entry["pixels"] for entry in document["classes"]) == 64 * 48


@pytest.mark.parametrize(
    "content_type", ["image/jpeg", "application/octet-stream", "text/plain", None], ids=str
)
def test_predictions_raw_body_of_any_declared_type_is_read_as_the_image(api: Api, content_type):
    headers = {"Content-Type": content_type} if content_type else {}
    response = api.post(data=encoded(picture(), "JPEG"), headers=headers)
    assert response.status_code == 200, response.text


def test_predictions_put_of_a_file_is_segmented(api: Api):
    """What `curl -T FILE` sends."""
    url = f"{api.inference_url}/predictions/deeplabv3"
    response = requests.put(url, data=encoded(picture()), headers=api.headers, timeout=60)
    assert response.status_code == 200, response.text


OPTIONS = {
    "header": {"data": encoded(picture()), "headers": {"X-Segment-Mask": "none"}},
    "header in lower case": {"data": encoded(picture()), "headers": {"x-segment-mask": "none"}},
    "header in upper case": {"data": encoded(picture()), "headers": {"X-SEGMENT-MASK": "none"}},
    "form field": {"files": {"data": encoded(picture())}, "data": {"mask": "none"}},
    "JSON member": {"json": {"data": as_base64(encoded(picture())), "mask": "none"}},
}


@pytest.mark.parametrize("request_parts", OPTIONS.values(), ids=OPTIONS.keys())
def test_predictions_option_by_any_way_is_obeyed(api: Api, request_parts):
    response = api.post(**request_parts)
    assert response.status_code == 200, response.text
    assert "mask" not in response.json()


def test_predictions_without_option_take_the_default_of_the_model_config(api: Api):
    image = encoded(picture())
    assert api.post("deeplabv3", data=image).json()["mask"]["encoding"] == "dense"
    assert "mask" not in api.post("narrow", data=image).json()
