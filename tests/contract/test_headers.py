"""What the headers of every response contain, and what they do not."""

import pytest
import requests

from tests.contract.conftest import Api
from tests.contract.images import encoded, picture

BODIES = {"response": (encoded(picture()), 200), "error": (b"no image", 415)}


@pytest.mark.parametrize(("body", "status"), BODIES.values(), ids=BODIES.keys())
def test_predictions_response_is_neither_stored_nor_guessed_at(api: Api, body, status):
    response = api.post(data=body)
    assert response.status_code == status
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert "no-store" in response.headers["Cache-Control"]


@pytest.mark.parametrize("method", ["OPTIONS", "GET", "POST"])
def test_predictions_requested_by_a_page_of_another_origin_allow_it_nothing(api: Api, method):
    headers = {
        **api.headers,
        "Origin": "https://attacker.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization",
    }
    url = f"{api.inference_url}/predictions/deeplabv3"
    response = requests.request(method, url, headers=headers, data=encoded(picture()), timeout=120)
    assert not [name for name in response.headers if name.lower().startswith("access-control-")]


def test_predictions_response_reports_no_version(api: Api):
    headers = api.post(data=encoded(picture())).headers
    reported = " ".join(headers.get(name, "") for name in ("Server", "X-Powered-By", "Via"))
    assert not any(character.isdigit() for character in reported), reported
