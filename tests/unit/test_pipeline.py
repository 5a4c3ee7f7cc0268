"""One request from row to response, what goes wrong on the way, the description, the warm-up."""

import base64
import dataclasses
import io
import json
import logging
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from segserve import runtime
from segserve.runtime import pipeline as pipeline_module
from segserve.runtime.errors import ModelError
from segserve.runtime.inference.labels import LabelRule
from segserve.runtime.inference.segmenter import Segmenter
from segserve.runtime.pipeline import Pipeline
from segserve.runtime.record import InferenceRule, InputRule, ResizeRule
from segserve.runtime.settings import Settings
from segserve.schema.request import Options

from .images import encoded, noise, png, smooth
from .tiny import CLASSES, tiny_network, tiny_record

CPU = torch.device("cpu")
FP32 = Settings(precision="fp32")


class Failing(torch.nn.Module):
    """A network that raises a given exception."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def forward(self, inputs):
        raise self.error


class Greedy(torch.nn.Module):
    """A network that really allocates a pebibyte."""

    def forward(self, inputs):
        return torch.empty(2**50, dtype=torch.uint8)


def pipeline_with(network: torch.nn.Module) -> Pipeline:
    return Pipeline(Segmenter(network, tiny_record(), device=CPU, settings=FP32), FP32)


def error_of(response) -> dict:
    document = json.loads(response.body)
    assert list(document) == ["error"]
    return document["error"]


@pytest.mark.parametrize(
    ("headers", "media_type", "opens_as"),
    [
        ({"Accept": "image/png"}, "image/png", "PNG"),
        ({"accept": "image/jpeg"}, "image/jpeg", "JPEG"),
    ],
    ids=["png", "jpeg"],
)
def test_response_accepting_a_picture_gives_one_of_the_image_size(
    tiny_pipeline, headers, media_type, opens_as
):
    response = tiny_pipeline.respond({"body": encoded(smooth(50, 80))}, headers)
    picture = Image.open(io.BytesIO(response.body))
    assert (response.status, response.phrase, response.media_type) == (200, "OK", media_type)
    assert (picture.format, picture.size) == (opens_as, (80, 50))


def test_response_all_types_hold_the_mask_of_the_segmenter(tiny_pipeline):
    image = smooth(50, 80)
    expected = tiny_pipeline.segmenter.segment(image).label_map
    assert len(np.unique(expected)) > 1
    row = {"body": encoded(image)}
    dense = json.loads(tiny_pipeline.respond(row, {}).body)
    assert np.array_equal(dense["mask"]["data"], expected)
    label_png = Image.open(io.BytesIO(tiny_pipeline.respond(row, {"Accept": "image/png"}).body))
    assert np.array_equal(np.array(label_png), expected)
    npy = tiny_pipeline.respond(row, {"Accept": "application/x-npy"})
    assert npy.media_type == "application/x-npy"
    assert np.array_equal(np.load(io.BytesIO(npy.body)), expected)


def test_response_reports_the_time_of_every_stage(tiny_pipeline):
    response = tiny_pipeline.respond({"body": encoded(noise(20, 30))}, {})
    stages = [r"decode", r"preprocess", r"inference", r"encode"]
    assert re.fullmatch(
        ", ".join(rf"{stage};dur=\d+\.\d\d" for stage in stages), response.server_timing
    )


def test_response_reports_the_cost_that_was_requested_for(tiny_pipeline):
    response = tiny_pipeline.respond(
        {"body": encoded(smooth(128, 160))}, {"X-Segment-Mode": "slide"}
    )
    assert response.status == 200
    assert re.search(
        r', inference;dur=\d+\.\d\d;desc="12\.0 passes", encode;dur', response.server_timing
    )


@pytest.mark.parametrize("tta", ["none", "flip", "multiscale"])
@pytest.mark.parametrize("mode", ["whole", "slide"])
def test_response_mode_and_tta_reach_the_segmenter(tiny_segmenter, mode, tta):
    image = smooth(100, 130)
    expected = tiny_segmenter.segment(image, mode=mode, tta=tta).label_map
    pipeline = Pipeline(tiny_segmenter, Settings(precision="fp32", max_cost=1000))
    row = {"data": encoded(image), "mode": mode.encode(), "tta": tta.encode()}
    response = pipeline.respond(row, {"Accept": "application/x-npy"})
    assert response.status == 200
    assert np.array_equal(np.load(io.BytesIO(response.body)), expected)


def test_response_above_the_cost_of_the_record_is_413_that_names_what_fits(tiny_pipeline):
    row = {"body": encoded(smooth(128, 160))}
    response = tiny_pipeline.respond(
        row, {"X-Segment-Mode": "slide", "X-Segment-Tta": "multiscale"}
    )
    assert (response.status, error_of(response)["code"]) == (413, "cost_too_high")
    message = error_of(response)["message"]
    assert re.match(
        r"mode=slide tta=multiscale takes \d+\.\d passes .* an image of 160 x 128 pixels, the "
        r"limit is 30; ",
        message,
    )
    fitting = re.findall(r"mode=(\w+) tta=(\w+) \((\d+\.\d)\)", message)
    assert ("slide", "flip", "24.0") in fitting
    assert ("slide", "multiscale") not in [(mode, tta) for mode, tta, _ in fitting]
    for mode, tta, cost in fitting:
        response = tiny_pipeline.respond(row, {"X-Segment-Mode": mode, "X-Segment-Tta": tta})
        assert response.status == 200
        assert f'desc="{cost} passes"' in response.server_timing or cost == "1.0"


def test_response_cost_of_settings_goes_before_that_of_the_record(tiny_segmenter):
    row, flipped = {"body": encoded(smooth(50, 80))}, {"X-Segment-Tta": "flip"}
    strict = Pipeline(tiny_segmenter, Settings(precision="fp32", max_cost=1))
    assert strict.respond(row, {}).status == 200
    assert error_of(strict.respond(row, flipped))["code"] == "cost_too_high"
    assert (
        Pipeline(tiny_segmenter, Settings(precision="fp32", max_cost=2))
        .respond(row, flipped)
        .status
        == 200
    )


def test_response_cost_of_the_record_holds():
    record = tiny_record(inference=InferenceRule(max_cost=3))
    pipeline = Pipeline(Segmenter(tiny_network(record), record, device=CPU, settings=FP32), FP32)
    assert pipeline.max_cost == json.loads(pipeline.describe().body)["limits"]["max_cost"] == 3


def test_response_slide_of_a_thin_image_is_rejected_before_it_grows(tiny_pipeline):
    """The network cannot see one row; it would see 32 of 300,000 pixels."""
    response = tiny_pipeline.respond(
        {"body": encoded(np.zeros((1, 300_000, 3), np.uint8))}, {"X-Segment-Mode": "slide"}
    )
    assert (response.status, error_of(response)["code"]) == (413, "cost_too_high")


def test_response_default_options_of_settings_hold(tiny_segmenter):
    pipeline = Pipeline(tiny_segmenter, Settings(precision="fp32", defaults=Options(mask="none")))
    row = {"body": encoded(noise(20, 30))}
    assert "mask" not in json.loads(pipeline.respond(row, {}).body)
    assert (
        json.loads(pipeline.respond(row, {"X-Segment-Mask": "png"}).body)["mask"]["encoding"]
        == "png"
    )


@pytest.mark.parametrize(
    ("row", "headers", "status", "code"),
    [
        ({}, {}, 400, "no_image"),
        ({"body": encoded(noise(9, 9))}, {"X-Segment-Mask": "dots"}, 400, "bad_option"),
        ({"body": {"data": "*"}}, {}, 400, "bad_base64"),
        ({"body": []}, {}, 400, "bad_json"),
        ({"body": encoded(noise(9, 9))}, {"Accept": "text/html"}, 406, "not_acceptable"),
        ({"body": png(5000, 5000)}, {}, 413, "image_too_large"),
        ({"body": "a text file"}, {}, 415, "image_unsupported"),
        ({"body": {"data": "AAAA"}}, {}, 415, "image_unsupported"),
        ({"body": encoded(noise(9, 9))[:-60]}, {}, 422, "image_truncated"),
        ({"body": png(0, 5)}, {}, 422, "image_corrupt"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_response_bad_request_gives_its_status_and_code(tiny_pipeline, row, headers, status, code):
    response = tiny_pipeline.respond(row, headers)
    assert (response.status, response.media_type) == (status, "application/json")
    assert error_of(response)["code"] == code
    assert error_of(response)["message"]


def test_response_limits_of_settings_hold(tiny_segmenter):
    pipeline = Pipeline(
        tiny_segmenter, Settings(precision="fp32", max_image_pixels=600, max_response_bytes=600)
    )
    assert (
        error_of(pipeline.respond({"body": encoded(noise(20, 31))}, {}))["code"]
        == "image_too_large"
    )
    assert (
        error_of(pipeline.respond({"body": encoded(noise(20, 30))}, {}))["code"]
        == "answer_too_large"
    )
    assert (
        pipeline.respond({"body": encoded(noise(20, 30))}, {"X-Segment-Mask": "none"}).status == 200
    )


@pytest.mark.parametrize("accept", ["application/json", "image/png", "image/jpeg"])
def test_response_of_a_jpeg_above_the_decoded_limit(tiny_segmenter, accept):
    """The label map has the image's size; the overlay that of the decoded image."""
    settings = Settings(precision="fp32", max_decoded_pixels=320 * 480 // 4)
    content = encoded(smooth(320, 480), "JPEG", quality=95)
    response = Pipeline(tiny_segmenter, settings).respond({"body": content}, {"Accept": accept})
    assert response.status == 200
    if accept == "application/json":
        document = json.loads(response.body)
        assert (document["height"], document["width"]) == (320, 480)
    else:
        expected = {"image/png": (480, 320), "image/jpeg": (240, 160)}[accept]
        assert Image.open(io.BytesIO(response.body)).size == expected


def test_response_alpha_decides_about_transparent_pixels(tiny_pipeline):
    rgba = np.dstack([smooth(50, 80), np.full((50, 80), 0, np.uint8)])
    white, stored = (
        json.loads(tiny_pipeline.respond({"data": encoded(rgba), "alpha": alpha}, {}).body)
        for alpha in (b"white", b"ignore")
    )
    for document, image in ((white, np.full((50, 80, 3), 255, np.uint8)), (stored, rgba[..., :3])):
        expected = tiny_pipeline.segmenter.segment(np.ascontiguousarray(image)).label_map
        assert np.array_equal(document["mask"]["data"], expected)


def test_response_classes_threshold_and_confidence_reach_the_segmenter(tiny_pipeline):
    image = smooth(50, 80)
    rule = LabelRule(frozenset({1}), 0.55, keep_confidence=True)
    expected = tiny_pipeline.segmenter.segment(image, rule=rule)
    assert 0 < np.count_nonzero(expected.label_map) < expected.label_map.size
    row = {"data": encoded(image), "classes": b"cat", "threshold": b"0.55", "confidence": b"true"}
    document = json.loads(tiny_pipeline.respond(row, {}).body)
    assert np.array_equal(document["mask"]["data"], expected.label_map)
    assert {entry["id"]: entry["pixels"] for entry in document["classes"]} == {
        summary.id: summary.pixels for summary in expected.classes
    }
    confidence = Image.open(io.BytesIO(base64.b64decode(document["confidence"]["data"])))
    assert np.array_equal(np.array(confidence), expected.confidence_map)


def test_response_rules_that_change_nothing_give_the_same_bytes(tiny_pipeline):
    row = {"body": encoded(smooth(50, 80))}
    ruled = {
        "X-Segment-Classes": "0,1,2",
        "X-Segment-Threshold": "0",
        "X-Segment-Confidence": "false",
    }
    for accept in ("application/json", "image/png", "application/x-npy"):
        assert (
            tiny_pipeline.respond(row, {"Accept": accept, **ruled}).body
            == tiny_pipeline.respond(row, {"Accept": accept}).body
        )


def test_response_unknown_class_is_400_that_names_those_of_the_model(tiny_pipeline):
    response = tiny_pipeline.respond(
        {"body": encoded(smooth(50, 80))}, {"X-Segment-Classes": "cta"}
    )
    assert (response.status, error_of(response)["code"]) == (400, "bad_option")
    assert error_of(response)["message"] == (
        "option classes: got 'cta'; the classes are: 0 background, 1 cat, 2 dog"
    )


def test_pipeline_default_classes_that_the_model_has_not_raise(tiny_segmenter):
    with pytest.raises(
        ModelError,
        match=r"^model-config.yaml: handler.defaults: option classes: got 'zebra'; the class",
    ):
        Pipeline(tiny_segmenter, Settings(precision="fp32", defaults=Options(classes=("zebra",))))


def test_response_network_without_memory_is_507():
    response = pipeline_with(Greedy()).respond({"body": encoded(noise(20, 30))}, {})
    assert (response.status, response.phrase, error_of(response)["code"]) == (
        507,
        "Insufficient Storage",
        "out_of_memory",
    )
    assert "30 x 20 pixels" in error_of(response)["message"]


def test_response_decoder_without_memory_is_507_too(tiny_pipeline, monkeypatch):
    def exhausted(_content, **_options):
        return bytearray(2**62)

    monkeypatch.setattr(pipeline_module, "decode_reduced", exhausted)
    response = tiny_pipeline.respond({"body": encoded(noise(20, 30))}, {})
    assert (response.status, error_of(response)["code"]) == (507, "out_of_memory")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("secret /etc/passwd"),
        ValueError("secret"),
        KeyError("secret"),
        AssertionError("secret"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_response_failing_network_is_500_without_details_and_logged(error, caplog):
    with caplog.at_level(logging.ERROR):
        response = pipeline_with(Failing(error)).respond({"body": encoded(noise(20, 30))}, {})
    assert (response.status, error_of(response)["code"]) == (500, "internal_error")
    assert "secret" not in response.body.decode()
    assert "Traceback" in caplog.text
    assert "secret" in caplog.text


def test_response_client_error_is_not_logged(tiny_pipeline, caplog):
    with caplog.at_level(logging.DEBUG):
        tiny_pipeline.respond({"body": b"text"}, {})
    assert not caplog.records


@given(
    st.binary(max_size=200),
    st.dictionaries(st.sampled_from(["Accept", "X-Segment-Mask"]), st.text(max_size=9)),
)
def test_any_bytes_get_a_response(tiny_pipeline, content, headers):
    response = tiny_pipeline.respond({"body": content}, headers)
    assert response.status in (400, 406, 413, 415, 422)
    assert error_of(response)["code"]


def test_response_is_the_same_after_other_requests(tiny_pipeline):
    row = {"body": encoded(smooth(40, 60))}
    before = tiny_pipeline.respond(row, {}).body
    for other in ({}, {"body": b"text"}, {"body": encoded(noise(99, 12))}):
        tiny_pipeline.respond(other, {})
    assert tiny_pipeline.respond(row, {}).body == before


def test_describe_reports_what_the_record_and_the_settings_say(tiny_segmenter):
    settings = Settings(precision="fp32", max_image_pixels=123, max_response_bytes=456)
    response = Pipeline(tiny_segmenter, settings).describe()
    document = json.loads(response.body)
    assert (response.status, response.media_type) == (200, "application/json")
    assert [(info["label"], tuple(info["color"])) for info in document["classes"]] == list(CLASSES)
    assert document["input"]["resize"]["size_px"] == 64
    assert document["limits"] == {
        "max_image_pixels": 123,
        "max_decoded_pixels": 123,
        "max_response_bytes": 456,
        "max_cost": 30,
    }
    assert document["options"]["mask"]["enum"] == ["dense", "rle", "png", "polygons", "none"]
    assert document["options"]["mode"]["enum"] == ["whole", "slide"]
    assert document["options"]["tta"]["enum"] == ["none", "flip", "multiscale"]
    assert document["media_types"] == [
        "application/json",
        "image/png",
        "image/jpeg",
        "application/x-npy",
    ]
    assert document["image_formats"] == ["JPEG", "PNG", "WEBP", "AVIF", "BMP", "TIFF", "GIF"]
    assert (document["device"], document["precision"]) == ("cpu", "float32")


def test_describe_reports_the_defaults_and_the_resize_rule_of_the_operator(tiny_model):
    rule = ResizeRule(size_px=96, multiple_of=32)
    settings = Settings(
        precision="fp32", resize=rule, defaults=Options(mask="png", threshold=0.5, classes="dog")
    )
    segmenter = Segmenter.load(tiny_model, settings=settings)
    document = json.loads(Pipeline(segmenter, settings).describe().body)
    defaults = {name: option["default"] for name, option in document["options"].items()}
    assert defaults == settings.defaults.model_dump(mode="json")
    assert (defaults["mask"], defaults["threshold"]) == ("png", 0.5)
    assert document["input"]["resize"] == rule.model_dump(mode="json")


def test_pipeline_is_frozen(tiny_pipeline):
    with pytest.raises(dataclasses.FrozenInstanceError, match="settings"):
        tiny_pipeline.settings = FP32


def test_warm_up_shows_the_network_every_shape_of_photograph():
    seen = set()

    class Watching(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = tiny_network(tiny_record())

        def forward(self, inputs):
            seen.add(tuple(inputs.shape))
            return self.network(inputs)

    pipeline_with(Watching()).warm_up()
    assert seen == {(1, 3, 64, 64), (1, 3, 32, 64), (1, 3, 64, 32)} or seen == {(1, 3, 64, 64)}


def test_warm_up_of_the_smallest_input_works():
    record = tiny_record(
        input=InputRule(resize=ResizeRule(size_px=1), mean=(0.5,) * 3, std=(0.5,) * 3)
    )
    segmenter = Segmenter(tiny_network(record), record, device=CPU, settings=FP32)
    Pipeline(segmenter, FP32).warm_up()
    assert segmenter.segment(noise(3, 4)).label_map.shape == (3, 4)


def test_runtime_docstring_names_its_packages_and_modules():
    folder = Path(runtime.__file__).parent
    packages = {path.parent.name for path in folder.glob("*/__init__.py")}
    named = set(re.findall(r"`(\w+)`", runtime.__doc__))
    assert packages | {"pipeline", "request", "metrics", "telemetry"} == named
