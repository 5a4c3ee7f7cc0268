"""The three ways an image arrives, and the three ways options do; rows are made by TorchServe's own
code.
"""

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segserve.runtime.encode.response import error_response
from segserve.runtime.errors import (
    BadBase64Error,
    BadJSONError,
    BadOptionError,
    NoImageError,
    NotAcceptableError,
    SegserveError,
)
from segserve.runtime.request import SegmentRequest, read_request
from segserve.schema.request import MediaType, Options

from .torchserve import Part, Request, form, raw, received

IMAGE = b"\x89PNG\r\n\x1a\n\0\xff not read here"
BASE64 = base64.b64encode(IMAGE).decode()


def read(request: Request, defaults: Options | None = None) -> SegmentRequest:
    (row,), (headers,) = received(request)
    return read_request(row, headers, defaults or Options())


def read_json(
    document: object, content_type: str = "application/json", **headers: str
) -> SegmentRequest:
    return read(raw(json.dumps(document).encode(), content_type, **headers))


# The image


@pytest.mark.parametrize(
    "request_",
    [
        raw(IMAGE),
        raw(IMAGE, "image/png"),
        raw(IMAGE, ""),
        raw(IMAGE, "text/plain"),
        form(Part(IMAGE, "data", "image/png")),
        form(Part(IMAGE, "body", "application/octet-stream")),
        form(Part(IMAGE, "data"), boundary="a-json-b"),
        raw(json.dumps({"data": BASE64}).encode(), "application/json"),
        raw(json.dumps({"data": BASE64}).encode(), "application/json; charset=utf-8"),
        raw(json.dumps({"data": BASE64}).encode(), "application/octet-stream"),
        raw(json.dumps({"data": BASE64}).encode(), "text/plain"),
        form(Part(json.dumps({"data": BASE64}).encode(), "data", "application/json")),
        form(Part(json.dumps({"data": BASE64}).encode(), "data")),
    ],
    ids=[
        "body",
        "body image/png",
        "body without a type",
        "body mistaken for text",
        "form data",
        "form body",
        "form, boundary says json",
        "json",
        "json with charset",
        "json as bytes",
        "json as text",
        "json in a form",
        "json bytes in a form",
    ],
)
def test_read_request_each_way_an_image_arrives_gives_its_bytes(request_):
    assert read(request_) == SegmentRequest(IMAGE, Options(), MediaType.JSON)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview], ids=lambda kind: kind.__name__)
def test_read_request_each_kind_of_buffer_gives_bytes(kind):
    image = read_request({"body": kind(IMAGE)}, {}, Options()).image
    assert type(image) is bytes
    assert image == IMAGE


@pytest.mark.parametrize(
    "text",
    [
        f"data:image/png;base64,{BASE64}",
        f"data:;base64,{BASE64}",
        "\n".join(BASE64[i : i + 4] for i in range(0, len(BASE64), 4)),
        f" \r\n{BASE64}\t\n",
    ],
    ids=["data url", "data url without type", "line breaks", "surrounding space"],
)
def test_read_request_base64_variant_gives_the_bytes(text):
    assert read_json({"data": text}).image == IMAGE


@pytest.mark.parametrize(
    "content", ["plain text", "no {json", "ä€"], ids=["ascii", "brace", "unicode"]
)
def test_read_request_text_file_is_handed_on_to_be_rejected_as_no_image(content):
    # TorchServe hands text over as a string; the decoder raises 415, as for any other file.
    assert read(raw(content.encode(), "text/plain")).image == content.encode()
    assert read(form(Part(content.encode(), "data", "text/plain"))).image == content.encode()


@pytest.mark.parametrize(
    ("request_", "named"),
    [
        (raw(b""), "the body is empty"),
        (raw(b"", "text/plain"), "the body is empty"),
        (form(Part(b"", "data")), "the body is empty"),
        (Request(()), "got nothing"),
        (form(Part(IMAGE, "image")), "part 'data', got 'image'"),
        (form(Part(IMAGE, "Data")), "part 'data', got 'Data'"),
        (form(Part(IMAGE, "\udc80".encode("utf-8", "replace").decode() * 999)), "got '"),
        (raw(b"{}", "application/json"), "member 'data', got nothing"),
        (raw(b'{"image": "AAAA"}', "application/json"), "member 'data', got 'image'"),
        (raw(b'{"data": null}', "application/json"), "member 'data', got 'data'"),
        (raw(b'{"data": ""}', "application/json"), "is empty"),
        (raw(b'{"data": "data:image/png;base64,"}', "application/json"), "is empty"),
    ],
    ids=[
        "empty body",
        "empty text",
        "empty part",
        "no parts",
        "other part",
        "other case",
        "long part",
        "empty object",
        "other member",
        "null",
        "empty string",
        "empty data url",
    ],
)
def test_read_request_without_image_raises_and_says_what_came(request_, named):
    with pytest.raises(NoImageError, match=f"^no image.*{named}") as caught:
        read(request_)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("text", ["*", "AAA", "AAAA====A", "ä" * 8, "\udc80", "_-_-"], ids=repr)
def test_read_request_broken_base64_raises(text):
    with pytest.raises(BadBase64Error, match="'data' is not base64"):
        read_json({"data": text})


@pytest.mark.parametrize("value", [1, 1.5, True, [], ["AAAA"], {"b64": "AAAA"}], ids=repr)
def test_read_request_data_that_is_no_text_raises(value):
    with pytest.raises(BadBase64Error, match=f"expected base64 text, got {type(value).__name__}"):
        read_json({"data": value})


@pytest.mark.parametrize("document", [[], [{"data": BASE64}], 5, "text", None, True], ids=repr)
@pytest.mark.parametrize("content_type", ["application/json", "application/json; charset=utf-8"])
def test_read_request_json_that_is_no_object_raises(document, content_type):
    with pytest.raises(
        BadJSONError, match=f"expected a JSON object.*got {type(document).__name__}"
    ):
        read_json(document, content_type)


@pytest.mark.parametrize(
    "content", [b"{", b'{"data": "AAAA"', b'{"data": NaN}\xff', b"\xff\xfe", b""], ids=repr
)
@pytest.mark.parametrize("content_type", ["application/json", "application/json; charset=utf-8"])
def test_read_request_json_that_does_not_parse_raises(content, content_type):
    with pytest.raises(BadJSONError, match="the body is not JSON"):
        read(raw(content, content_type))


def test_read_request_deeply_nested_json_raises():
    with pytest.raises(BadJSONError, match="not JSON"):
        read(raw(b'{"data":' * 9_000, "application/json"))


@pytest.mark.parametrize("depth", [400, 900, 1000, 1020], ids=str)
def test_read_request_deeply_nested_option_raises(depth):
    document = f'{{"data": "{BASE64}", "mask": {"[" * depth}{"]" * depth}}}'
    with pytest.raises(
        BadOptionError,
        match=r"option 'mask': expected a text, a number or a list of at most 2000 of these",
    ):
        read(raw(document.encode(), "application/json"))


def test_read_request_json_of_many_members_raises():
    with pytest.raises(BadJSONError, match="the JSON holds 100002 members, the limit is 10000"):
        read(raw(b'{"data":[' + b"{}," * 50_000 + b"]}", "application/json"))


@pytest.mark.parametrize("value", ["x," * 10**6, ["cat"] * 3000], ids=["text", "list"])
def test_read_request_option_of_absurd_size_is_an_error_response(value):
    with pytest.raises(
        BadOptionError, match=r"option 'classes': expected .* 2000 of these, with 20000 characters"
    ) as caught:
        read_json({"data": BASE64, "classes": value})
    assert len(error_response(caught.value).body) < 1000


def test_read_request_base64_with_spaces_within_is_read():
    assert read_json({"data": "\r\n ".join(BASE64)}).image == IMAGE


# Options


@pytest.mark.parametrize("name", ["X-Segment-Mask", "x-segment-mask", "X-SEGMENT-MASK"])
@pytest.mark.parametrize("value", ["png", " png\t"], ids=["plain", "spaces"])
def test_read_request_option_header_in_any_case_is_read(name, value):
    request = Request((Part(IMAGE),), {name: value})
    assert read(request).options == Options(mask="png")


@pytest.mark.parametrize(
    "part", [Part(b"png", "mask"), Part(b" png\r\n", "mask"), Part(b"png\n", "mask", "text/plain")]
)
def test_read_request_form_field_is_an_option(part):
    assert read(form(Part(IMAGE, "data"), part)).options == Options(mask="png")
    assert read(form(part, Part(IMAGE, "data"))).options == Options(mask="png")


def test_read_request_json_member_is_an_option():
    assert read_json({"data": BASE64, "mask": "none"}).options == Options(mask="none")


@pytest.mark.parametrize("content_type", ["", "application/json"])
def test_read_request_form_field_beside_json_is_an_option(content_type):
    content = json.dumps({"data": BASE64, "mask": "none"}).encode()
    request = form(Part(content, "data", content_type), Part(b"png", "mask"))
    assert read(request).options == Options(mask="png")


@pytest.mark.parametrize(
    ("field", "header", "expected"),
    [
        (None, None, "none"),
        (None, "png", "png"),
        ("dense", "png", "dense"),
        ("dense", None, "dense"),
    ],
    ids=["default", "header over default", "field over header", "field over default"],
)
def test_read_request_options_follow_body_then_header_then_default(field, header, expected):
    headers = {"X-Segment-Mask": header} if header else {}
    parts = (Part(IMAGE, "data"), *([Part(field.encode(), "mask")] if field else []))
    assert read(Request(parts, headers), Options(mask="none")).options.mask == expected
    document = {"data": BASE64, **({"mask": field} if field else {})}
    body = Part(json.dumps(document).encode(), content_type="application/json")
    assert read(Request((body,), headers), Options(mask="none")).options.mask == expected


@pytest.mark.parametrize(
    "request_",
    [
        raw(IMAGE, X_Segment_Size="5"),
        raw(IMAGE, X_Segment_="5"),
        form(Part(IMAGE, "data"), Part(b"5", "size")),
        form(Part(IMAGE, "data"), Part(IMAGE[:8], "body", "text/plain")),
        form(Part(b'{"data": "AAAA"}', "data", "application/json"), Part(b"5", "size")),
        raw(b'{"data": "AAAA", "size": 5}', "application/json"),
        raw(b'{"data": "AAAA", "\\ud800": 5}', "application/json"),
        raw(json.dumps({"data": "AAAA", "x" * 10**5: 5}).encode(), "application/json"),
    ],
    ids=[
        "header",
        "nameless header",
        "field",
        "two images",
        "field beside json",
        "member",
        "surrogate",
        "long name",
    ],
)
def test_read_request_unknown_option_is_an_error_response(request_):
    with pytest.raises(
        BadOptionError, match=r"unknown option '.*; the options are: mask|is not text"
    ) as caught:
        read(request_)
    assert len(error_response(caught.value).body) < 1000


def test_read_request_binary_form_field_raises():
    with pytest.raises(
        BadOptionError, match="form field 'mask' is not text; the image belongs in the part 'data'"
    ):
        read(form(Part(IMAGE, "data"), Part(b"\xff\xd8\xff", "mask")))


@pytest.mark.parametrize(
    "value", [None, 1, ["png"], "PNG", "", "\udc80", "x" * 10**4], ids=lambda v: f"{v!r:.9}"
)
def test_read_request_bad_value_is_an_error_response(value):
    with pytest.raises(
        BadOptionError, match=r"option mask: got .*('polygons' or 'none'|unicode)"
    ) as caught:
        read_json({"data": BASE64, "mask": value})
    assert len(error_response(caught.value).body) < 1000


@pytest.mark.parametrize("name", ["Accept", "accept", "ACCEPT"])
def test_read_request_accept_header_in_any_case_chooses_the_type(name):
    assert read(Request((Part(IMAGE),), {name: "image/png"})).media_type is MediaType.PNG


def test_read_request_accept_of_nothing_on_offer_raises():
    with pytest.raises(NotAcceptableError, match="text/html"):
        read(raw(IMAGE, Accept="text/html"))


@pytest.mark.parametrize("accept", ["image/png", "image/jpeg", "application/x-npy"])
@pytest.mark.parametrize("value", ["true", "1"])
def test_read_request_confidence_of_a_response_that_cannot_have_it_raises(accept, value):
    with pytest.raises(
        BadOptionError,
        match=f"option confidence: only application/json .* requests {accept}; accept",
    ):
        read(raw(IMAGE, Accept=accept, X_Segment_Confidence=value))


def test_read_request_confidence_of_the_defaults_holds_where_there_is_room():
    defaults = Options(confidence=True)
    assert read(raw(IMAGE), defaults).with_confidence
    assert not read(raw(IMAGE, Accept="image/png"), defaults).with_confidence
    assert not read(raw(IMAGE, X_Segment_Confidence="false"), defaults).with_confidence


@pytest.mark.parametrize(
    "request_",
    [
        raw(
            IMAGE,
            X_Segment_Classes="cat, 2",
            X_Segment_Threshold="0.25",
            X_Segment_Confidence="true",
        ),
        form(
            Part(IMAGE, "data"),
            Part(b"cat, 2", "classes"),
            Part(b"0.25", "threshold"),
            Part(b"true\r\n", "confidence"),
        ),
        raw(
            json.dumps(
                {"data": BASE64, "classes": ["cat", "2"], "threshold": 0.25, "confidence": True}
            ).encode(),
            "application/json",
        ),
    ],
    ids=["headers", "form fields", "JSON members"],
)
def test_read_request_classes_threshold_and_confidence_by_any_way_are_read(request_):
    assert read(request_).options == Options(classes=("cat", "2"), threshold=0.25, confidence=True)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(
    st.dictionaries(
        st.sampled_from(["data", "body", "mask", "x", ""]), st.binary(max_size=12) | JSON_VALUES
    ),
    st.dictionaries(
        st.sampled_from(["Accept", "Content-Type", "X-Segment-Mask"]), st.text(max_size=12)
    ),
)
def test_read_request_anything_is_read_or_rejected_with_an_error(row, headers):
    try:
        request = read_request(row, headers, Options())
    except SegserveError as error:
        reply = error_response(error)
        assert reply.status in (400, 406)
        assert set(json.loads(reply.body)["error"]) == {"code", "message"}
    else:
        assert request.image
