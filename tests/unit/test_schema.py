"""The documents of the HTTP contract: current, valid, and in agreement with what validates and
answers.
"""

import json

import jsonschema
import pytest

from segserve.runtime.errors import SegserveError, error_classes
from segserve.runtime.options import MediaType, Options
from segserve.schema.__main__ import DOCUMENTS, document_text
from segserve.schema.openapi import openapi, response_schema

from ..conftest import PROJECT
from .images import encoded, smooth

ANSWERS = jsonschema.Draft202012Validator(response_schema())
OPENAPI = openapi()


@pytest.mark.parametrize("name", DOCUMENTS)
def test_document_in_docs_is_the_one_that_the_code_makes(name):
    assert (PROJECT / "docs" / name).read_text(encoding="utf-8") == document_text(name), (
        "run `python -m segserve.schema`"
    )


def test_answer_schema_is_a_schema():
    jsonschema.Draft202012Validator.check_schema(response_schema())


@pytest.mark.parametrize("confidence", ["true", "false"])
@pytest.mark.parametrize("mask", ["dense", "rle", "png", "polygons", "none"])
def test_answer_schema_admits_what_the_pipeline_answers(tiny_pipeline, mask, confidence):
    row = {
        "data": encoded(smooth(50, 80)),
        "mask": mask.encode(),
        "confidence": confidence.encode(),
    }
    document = json.loads(tiny_pipeline.answer(row, {}).body)
    assert ("mask" in document, "confidence" in document) == (mask != "none", confidence == "true")
    ANSWERS.validate(document)


@pytest.fixture(scope="module")
def good_answer(tiny_pipeline) -> dict:
    return json.loads(
        tiny_pipeline.answer({"data": encoded(smooth(50, 80)), "mask": b"rle"}, {}).body
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
        "bare text",
    ],
)
def test_answer_schema_refuses_what_is_no_answer(good_answer, change, message):
    with pytest.raises(jsonschema.ValidationError, match=message):
        ANSWERS.validate({**good_answer, **change})


def test_openapi_describes_every_option_in_every_way():
    operation = OPENAPI["paths"]["/predictions/{model}"]
    headers = {entry["name"] for entry in operation["parameters"] if entry["in"] == "header"}
    assert headers == {f"X-Segment-{name.title()}" for name in Options.model_fields}
    for way in ("FormRequest", "JsonRequest"):
        assert set(OPENAPI["components"]["schemas"][way]["properties"]) == {
            "data",
            *Options.model_fields,
        }


def test_openapi_describes_every_status_and_code():
    refusals = OPENAPI["paths"]["/predictions/{model}"]["post"]["responses"]
    for kind in error_classes():
        assert kind.code in refusals[str(kind.status)]["description"]
    codes = OPENAPI["components"]["schemas"]["ErrorDetail"]["properties"]["code"]["enum"]
    assert (
        set(codes)
        == {kind.code for kind in error_classes()}
        > {SegserveError.code, "no_image", "image_truncated"}
    )


def test_openapi_describes_every_media_type():
    assert set(
        OPENAPI["paths"]["/predictions/{model}"]["post"]["responses"]["200"]["content"]
    ) == set(MediaType)


def test_openapi_references_lead_somewhere():
    text = document_text("openapi.json")
    named = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert named
    assert named <= set(OPENAPI["components"]["schemas"])


def test_describe_answer_follows_its_schema(tiny_pipeline):
    schema = {"$ref": "#/components/schemas/Description", "components": OPENAPI["components"]}
    jsonschema.Draft202012Validator(schema).validate(json.loads(tiny_pipeline.describe().body))
