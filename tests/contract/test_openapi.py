"""The live server does what the OpenAPI document says, also when requests are made up from it."""

import json

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.conftest import PROJECT
from tests.contract.conftest import Api
from tests.contract.images import FORMATS, encoded, picture

DOCUMENT = json.loads((PROJECT / "docs" / "openapi.json").read_text(encoding="utf-8"))
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]

# Half of what is sent as an image is one: else no made-up request would come past the decoder.
_images = st.sampled_from([encoded(picture(), name) for name in FORMATS]) | st.binary(max_size=200)
for _name in ("octet-stream", *map(str.lower, FORMATS)):
    _media_type = "application/octet-stream" if _name == "octet-stream" else f"image/{_name}"
    schemathesis.openapi.media_type(_media_type, _images)
schemathesis.openapi.format("binary", _images)

SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)
OPERATIONS = {
    operation.label: operation
    for result in SCHEMA.get_all_operations()
    if (operation := result.ok()) is not None
}


@pytest.mark.parametrize("label", OPERATIONS)
def test_operation_responds_to_any_request_as_documented(api: Api, label):
    operation = OPERATIONS[label]

    @seed(0)
    @settings(
        max_examples=20,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy())
    def send(case):
        if "model" in (case.path_parameters or {}):
            case.path_parameters["model"] = "deeplabv3"
        case.call_and_validate(
            base_url=api.inference_url,
            headers=api.headers,
            checks=CHECKS,
        )

    send()
