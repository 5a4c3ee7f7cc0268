"""The documents of the HTTP contract: current, valid, and in agreement with live responses."""

import json

import jsonschema
import pytest

from segserve.client.request import ResponseOptions
from segserve.gateway.openapi import DOCUMENTS, document_text, openapi, response_schema
from segserve.runtime.decode.opening import FORMATS
from segserve.runtime.errors import SegserveError, error_classes
from segserve.schema.request import MediaType, Options
from segserve.schema.response import SegmentationResponse

from ..conftest import PROJECT
from .images import encoded, smooth

RESPONSES = jsonschema.Draft202012Validator(response_schema())
OPENAPI = openapi()


def resolved(entry: dict) -> dict:
    """What a reference of the document refers to."""
    if "$ref" not in entry:
        return entry
    found = OPENAPI
    for key in entry["$ref"].removeprefix("#/").split("/"):
        found = found[key]
    return found


@pytest.mark.parametrize("name", DOCUMENTS)
def test_document_in_docs_is_current(name):
    assert (PROJECT / "docs" / name).read_text(encoding="utf-8") == document_text(name), (
        "run `python -m segserve.gateway.openapi`"
    )


def test_response_schema_is_a_schema():
    jsonschema.Draft202012Validator.check_schema(response_schema())


@pytest.mark.parametrize("confidence", ["true", "false"])
@pytest.mark.parametrize("mask", ["dense", "rle", "png", "polygons", "none"])
def test_response_schema_accepts_the_responses_of_the_pipeline(tiny_pipeline, mask, confidence):
    row = {
        "data": encoded(smooth(50, 80)),
        "mask": mask.encode(),
        "confidence": confidence.encode(),
    }
    document = json.loads(tiny_pipeline.respond(row, {}).body)
    assert ("mask" in document, "confidence" in document) == (mask != "none", confidence == "true")
    RESPONSES.validate(document)


@pytest.fixture(scope="module")
def good_response(tiny_pipeline) -> dict:
    return json.loads(
        tiny_pipeline.respond({"data": encoded(smooth(50, 80)), "mask": b"rle"}, {}).body
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask": None}, "None is not valid"),
        (
            {"mask": {"encoding": "rle", "data": {"cat": {"size": [1, 1], "counts": "1"}}}},
            "not valid under any",
        ),
        ({"mask": {"encoding": "dense", "data": [[256]]}}, "not valid under any"),
        ({"mask": {"encoding": "polygons", "data": {"0": [[0, 0, 1, 1]]}}}, "not valid under any"),
        ({"classes": []}, "should be non-empty"),
        ({"width": 0}, "0 is less than"),
        ({"more": 1}, "'more' was unexpected"),
        ({"confidence": "AAAA"}, "'AAAA' is not of type 'object'"),
    ],
    ids=[
        "null",
        "label for id",
        "id too large",
        "two points",
        "no class",
        "no width",
        "unknown member",
        "text",
    ],
)
def test_response_schema_rejects_an_invalid_response(good_response, change, message):
    with pytest.raises(jsonschema.ValidationError, match=message):
        RESPONSES.validate({**good_response, **change})


def test_openapi_describes_every_option_of_every_request():
    parameters = map(resolved, OPENAPI["paths"]["/predictions/{model}"]["parameters"])
    headers = {entry["name"] for entry in parameters if entry["in"] == "header"}
    assert headers == {f"X-Segment-{name.title()}" for name in Options.model_fields}
    for request in ("FormRequest", "JsonRequest"):
        assert set(OPENAPI["components"]["schemas"][request]["properties"]) == {
            "data",
            *Options.model_fields,
        }


def test_openapi_describes_every_status_and_code():
    errors = OPENAPI["paths"]["/predictions/{model}"]["post"]["responses"]
    for kind in error_classes():
        assert kind.code in resolved(errors[str(kind.status)])["description"]
    codes = OPENAPI["components"]["schemas"]["ErrorDetail"]["properties"]["code"]["enum"]
    assert (
        set(codes)
        == {kind.code for kind in error_classes()}
        > {SegserveError.code, "no_image", "image_truncated"}
    )


def test_openapi_describes_every_media_type():
    responses = OPENAPI["paths"]["/predictions/{model}"]["post"]["responses"]
    assert set(resolved(responses["200"])["content"]) == set(MediaType)


def test_openapi_describes_every_image_format():
    post = OPENAPI["paths"]["/predictions/{model}"]["post"]
    types = {f"image/{name.lower()}" for name in FORMATS}
    assert types <= set(resolved(post["requestBody"])["content"])


def test_openapi_gives_the_threshold_its_bounds():
    schema = OPENAPI["components"]["parameters"]["X-Segment-Threshold"]["schema"]
    assert (schema["minimum"], schema["maximum"]) == (0, 1)


def test_openapi_paths_are_on_one_server_and_need_the_token_except_ping():
    paths = OPENAPI["paths"]
    assert [path for path, item in paths.items() if "servers" in item] == []
    open_to_all = {
        path for path, item in paths.items() if item.get("get", {}).get("security") == []
    }
    assert open_to_all == {"/ping"}


def test_openapi_references_exist():
    parts = [part.split('"')[0] for part in document_text("openapi.json").split("#/")[1:]]
    assert parts
    for reference in set(parts):
        resolved({"$ref": f"#/{reference}"})


def test_describe_response_follows_its_schema(tiny_pipeline):
    schema = {"$ref": "#/components/schemas/Description", "components": OPENAPI["components"]}
    jsonschema.Draft202012Validator(schema).validate(json.loads(tiny_pipeline.describe().body))


def test_response_models_accept_unknown_members_and_the_schema_does_not(good_response):
    """A client must read the responses of a newer server."""
    newer = {**good_response, "more": 1, "classes": [{**good_response["classes"][0], "more": 1}]}
    response = SegmentationResponse.model_validate_json(json.dumps(newer))
    assert response.classes[0].as_document() == {
        **good_response["classes"][0],
        "color": tuple(good_response["classes"][0]["color"]),
        "box": tuple(good_response["classes"][0]["box"]),
    }
    with pytest.raises(jsonschema.ValidationError, match="'more' was unexpected"):
        RESPONSES.validate(newer)


def test_error_body_is_that_of_every_error():
    for kind in error_classes():
        assert kind("text").as_document() == {"error": {"code": kind.code, "message": "text"}}


def test_client_options_are_those_of_the_contract():
    assert ResponseOptions.__annotations__.keys() == Options.model_fields.keys()
