"""Options that raise accuracy: they arrive in every form, report their cost, and are rejected above
the limit.
"""

import io
import re

import numpy as np
import pytest
from PIL import Image

from segserve.runtime.record import read_record
from tests.conftest import EMBEDDED
from tests.contract.conftest import Api
from tests.contract.images import as_base64, encoded, picture

IMAGE = encoded(picture(600, 500))
OPTIONS = {"mode": "slide", "tta": "flip"}
WAYS = {
    "headers": {"data": IMAGE, "headers": {"X-Segment-Mode": "slide", "X-Segment-Tta": "flip"}},
    "form fields": {"files": {"data": IMAGE}, "data": OPTIONS},
    "JSON members": {"json": {"data": as_base64(IMAGE), **OPTIONS}},
}


def cost_of(response) -> float:
    """Runs of the network by `Server-Timing`; one if it has no such entry."""
    assert response.status_code == 200, response.text
    timing = response.headers["Server-Timing"]
    assert re.findall(r"(\w+);dur=[\d.]+", timing) == [
        "decode",
        "preprocess",
        "inference",
        "encode",
    ]
    reported = re.search(r'inference;dur=[\d.]+;desc="([\d.]+) passes"', timing)
    return float(reported[1]) if reported else 1.0


@pytest.mark.parametrize("parts", WAYS.values(), ids=WAYS.keys())
def test_predictions_mode_and_tta_in_any_form_are_applied_and_report_their_cost(api: Api, parts):
    assert cost_of(api.post(**parts)) > 4


def test_predictions_of_a_mirrored_photograph_with_flip_are_mirrored(api: Api, photographs):
    def label_map(image: Image.Image) -> np.ndarray:
        headers = {"Accept": "application/x-npy", "X-Segment-Tta": "flip"}
        return np.load(io.BytesIO(api.post(data=encoded(image), headers=headers).content))

    with Image.open(io.BytesIO(photographs["chelsea"])) as photograph:
        straight = label_map(photograph)
        mirrored = label_map(photograph.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    assert len(np.unique(straight)) > 1
    assert (mirrored[:, ::-1] == straight).mean() > 0.995


def test_predictions_multiscale_is_within_the_cap(api: Api):
    assert cost_of(api.post(data=IMAGE, headers={"X-Segment-Tta": "multiscale"})) == pytest.approx(
        17, abs=2
    )


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [("Tta", "rotate", ("none", "flip", "multiscale")), ("Mode", "tiles", ("whole", "slide"))],
    ids=["tta", "mode"],
)
def test_predictions_unknown_tta_or_mode_is_400_that_names_the_allowed_ones(
    api: Api, name, value, allowed
):
    response = api.post(data=IMAGE, headers={f"X-Segment-{name}": value})
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "bad_option")
    assert all(f"'{word}'" in error["message"] for word in (value, *allowed))


def test_predictions_above_the_cap_are_413_that_names_cost_cap_and_what_fits(api: Api):
    image = encoded(picture(2000, 1500), "JPEG")
    response = api.post(
        data=image, headers={"X-Segment-Mode": "slide", "X-Segment-Tta": "multiscale"}
    )
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (413, "cost_too_high")
    assert f"the limit is {read_record(EMBEDDED).max_cost};" in error["message"]
    assert "mode=slide tta=none" in error["message"]


def test_describe_reports_options_and_cap(api: Api):
    document = api.describe().json()
    reported = document[0]["customizedMetadata"] if isinstance(document, list) else document
    assert reported["options"]["mode"]["enum"] == ["whole", "slide"]
    assert reported["options"]["tta"]["enum"] == ["none", "flip", "multiscale"]
    assert reported["limits"]["max_cost"] == read_record(EMBEDDED).max_cost
