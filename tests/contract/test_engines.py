"""The response of every engine is that of the archive without an engine, byte for byte."""

import pytest
import requests

from segserve.local import LocalSegmenter
from tests.contract.conftest import Api
from tests.contract.images import encoded, picture


@pytest.fixture(scope="module")
def local(archives) -> LocalSegmenter:
    return LocalSegmenter(archives[0], device="cpu")


@pytest.mark.parametrize("mask", ["dense", "rle", "png", "polygons", "none"])
def test_predictions_response_is_the_archive_s_byte_for_byte(api: Api, local, photographs, mask):
    response = api.post(data=photographs["chelsea"], headers={"X-Segment-Mask": mask})
    assert response.content == local.segment_raw(photographs["chelsea"], mask=mask)


@pytest.mark.parametrize("accept", ["image/png", "image/jpeg", "application/x-npy"])
def test_predictions_media_type_is_the_archive_s_byte_for_byte(
    api: Api, local, photographs, accept
):
    response = api.post(data=photographs["chelsea"], headers={"Accept": accept})
    assert response.content == local.segment_raw(photographs["chelsea"], accept)


REJECTIONS = {
    "no token": ("deeplabv3", {"Authorization": ""}, 400, "InvalidKeyException"),
    "wrong token": ("deeplabv3", {"Authorization": "Bearer wrong"}, 400, "InvalidKeyException"),
    "unknown model": ("absent", {}, 404, "ModelNotFoundException"),
    "unknown version": ("deeplabv3/9", {}, 404, "ModelVersionNotFoundException"),
}
MESSAGES = {
    "InvalidKeyException": "Token Authorization failed. Token either incorrect, expired, or not provided correctly",  # noqa: E501
    "ModelNotFoundException": "Model not found: absent",
    "ModelVersionNotFoundException": "Model version: 9 does not exist for model: deeplabv3",
}


@pytest.mark.parametrize(
    ("model", "headers", "status", "kind"), REJECTIONS.values(), ids=REJECTIONS.keys()
)
def test_predictions_rejection_of_the_server_itself_is_torchserve_s(
    api: Api, model, headers, status, kind
):
    response = api.post(model, data=encoded(picture()), headers=headers)
    assert response.status_code == status
    expected = (
        f'{{\n  "code": {status},\n  "type": "{kind}",\n  "message": "{MESSAGES[kind]}"\n}}\n'
    )
    assert response.text == expected


def test_predictions_of_a_version_that_is_served_get_a_response(api: Api):
    assert api.post("deeplabv3/2.0", data=encoded(picture())).status_code == 200


def test_ping_reports_that_the_server_is_healthy(api: Api):
    response = requests.get(f"{api.inference_url}/ping", headers=api.headers, timeout=30)
    assert (response.status_code, response.text) == (200, '{\n  "status": "Healthy"\n}\n')
