"""The code of docs/api.md runs as it stands there; its tables name what there is."""

import json
import re

import numpy as np
import pytest

from segserve.runtime.errors import error_classes
from segserve.runtime.inference.labels import LabelRule
from segserve.schema.request import MediaType, Options

from ..conftest import PROJECT
from .images import encoded, smooth

PAGE = (PROJECT / "docs" / "api.md").read_text(encoding="utf-8")
IMAGE = smooth(50, 80)


def decoded(pipeline, heading: str, **options: str) -> dict[str, np.ndarray]:
    """What the block under that heading makes of the response with those options."""
    [code] = re.findall(rf"^### {heading}\n.*?```python\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE)
    row = {"data": encoded(IMAGE), **{name: value.encode() for name, value in options.items()}}
    names = {"response": json.loads(pipeline.respond(row, {}).body)}
    exec(code, names)  # noqa: S102 - our own page
    return names


@pytest.mark.parametrize("mask", ["dense", "png", "rle", "polygons"])
def test_api_page_code_gives_the_label_map(tiny_pipeline, mask):
    expected = tiny_pipeline.segmenter.segment(IMAGE).label_map
    label_map = decoded(tiny_pipeline, mask, mask=mask)["label_map"]
    assert label_map.dtype == np.uint8
    np.testing.assert_array_equal(label_map, expected)


def test_api_page_code_gives_the_confidence(tiny_pipeline):
    expected = tiny_pipeline.segmenter.segment(
        IMAGE, rule=LabelRule(keep_confidence=True)
    ).confidence_map
    confidence = decoded(tiny_pipeline, "confidence", mask="none", confidence="true")["confidence"]
    np.testing.assert_array_equal(confidence, expected / 255)


def test_api_page_names_every_option_media_type_and_error():
    rows = re.findall(r"^\| (.*?) \|", PAGE, re.MULTILINE)
    assert {f"`{name}`" for name in Options.model_fields} <= set(rows)
    reported = PAGE.partition("## Errors")[2]
    assert [
        kind.code
        for kind in error_classes()
        if f"`{kind.code}`" not in reported and kind.code != "bad_request"
    ] == []
    assert [media_type for media_type in MediaType if f"`{media_type}`" not in PAGE] == []


def test_api_page_links_lead_to_files():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", PAGE)
    assert links
    assert [link for link in links if not (PROJECT / "docs" / link).exists()] == []
