"""What an `Accept` header requests, and the options of a request."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segserve.runtime.errors import BadOptionError, NotAcceptableError
from segserve.runtime.record import ClassInfo
from segserve.runtime.request import class_ids, negotiate, parse_options
from segserve.schema.request import MediaType, Options

from .tiny import tiny_record

JSON, PNG, JPEG, NPY = MediaType
FIREFOX_PAGE = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
CHROME_PAGE = (
    "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8,"
    "application/signed-exchange;v=b3;q=0.7"
)
CHROME_IMAGE = "image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8"
SAFARI_IMAGE = "image/webp,image/avif,image/jxl,image/heic,video/*;q=0.8,image/png,image/svg+xml,image/*;q=0.8,*/*;q=0.5"  # noqa: E501


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, JSON),
        ("", JSON),
        ("*/*", JSON),
        ("*", JSON),
        ("application/json", JSON),
        ("application/*", JSON),
        ("image/png", PNG),
        ("IMAGE/PNG", PNG),
        ("image/jpeg", JPEG),
        ("application/x-npy", NPY),
        ("image/*", PNG),
        (FIREFOX_PAGE, JSON),
        (CHROME_PAGE, JSON),
        (CHROME_IMAGE, PNG),
        (SAFARI_IMAGE, PNG),
        ("image/png, image/jpeg", PNG),
        ("image/jpeg, image/png", JPEG),
        ("image/png;q=0.5, image/jpeg;q=0.9", JPEG),
        ("image/png;Q=0.5,image/jpeg ; q=0.9", JPEG),
        ("text/html, image/jpeg;q=0.1", JPEG),
        ("image/*;q=0.5, image/png;q=0.1", JPEG),
        ("*/*;q=0.1, image/*;q=0.5, image/jpeg;q=0.5", PNG),
        ("*/*, application/json;q=0", PNG),
        ("*/*, application/json;q=0, image/*;q=0", NPY),
        ("image/*;q=0, image/png", PNG),
        ("*/*;q=0, image/jpeg", JPEG),
        ("image/png;q=nonsense, image/jpeg;q=0.2", JPEG),
        ("image/png;q=nan, image/jpeg;q=0.2", JPEG),
        ("image/png;q=7, image/jpeg;q=0.2", JPEG),
        ("image/png;q=-1, image/jpeg;q=0.2", JPEG),
        ("image/png;charset=x;q=0.4, image/jpeg;q=0.3", PNG),
        (",, image/png ,", PNG),
        (";;;, image/png", PNG),
    ],
    ids=lambda value: value if isinstance(value, MediaType) else repr(value)[:40],
)
def test_negotiate_header_gives_the_type_it_prefers(accept, expected):
    assert negotiate(accept) is expected


@pytest.mark.parametrize(
    "accept",
    [
        "text/html",
        "image/webp, image/avif",
        "image/png;q=0",
        "*/*;q=0",
        "nonsense",
        "/",
        ",",
        ";q=1",
        "image/png/x",
    ],
)
def test_negotiate_header_that_admits_nothing_raises_and_names_the_offer(accept):
    with pytest.raises(
        NotAcceptableError,
        match="available types: application/json, image/png, image/jpeg, application/x-npy",
    ) as caught:
        negotiate(accept)
    assert caught.value.status == 406


@given(st.text(st.sampled_from("imagepnjs/*;,=q01. x-"), max_size=60) | st.text(max_size=40))
def test_negotiate_any_text_gives_a_type_or_406(accept):
    try:
        outcome = negotiate(accept)
    except NotAcceptableError as error:
        outcome = error
    assert outcome in MediaType if isinstance(outcome, MediaType) else len(str(outcome)) < 250


@given(
    st.lists(
        st.tuples(
            st.sampled_from([*MediaType, "image/*", "application/*", "*/*", "text/html"]),
            st.sampled_from([0, 0.3, 1]),
        ),
        min_size=1,
        max_size=6,
        unique_by=lambda item: item[0],
    )
)
def test_negotiate_choice_has_the_highest_quality_by_its_most_specific_range(ranges):
    quality_by_range = dict(ranges)

    def quality(media_type):
        patterns = (media_type.value, media_type.split("/")[0] + "/*", "*/*")
        return next(
            (quality_by_range[pattern] for pattern in patterns if pattern in quality_by_range), 0
        )

    accept = ", ".join(f"{pattern};q={value}" for pattern, value in ranges)
    best = max(map(quality, MediaType))
    if best:
        assert quality(negotiate(accept)) == best
    else:
        with pytest.raises(NotAcceptableError, match="accepts none"):
            negotiate(accept)


@pytest.mark.parametrize("value", ["dense", "rle", "png", "polygons", "none"])
def test_parse_options_allowed_value_wins_over_default(value):
    assert parse_options({"mask": value}, Options(mask="none")).mask == value


def test_parse_options_nothing_given_keeps_defaults():
    assert parse_options({}, Options(mask="none", tta="flip")) == Options(mask="none", tta="flip")


def test_parse_options_accuracy_is_not_raised_unasked():
    assert (Options().mode, Options().tta) == ("whole", "none")


@pytest.mark.parametrize("mode", ["whole", "slide"])
@pytest.mark.parametrize("tta", ["none", "flip", "multiscale"])
def test_parse_options_mode_and_tta_are_taken_together(mode, tta):
    options = parse_options({"mode": mode, "tta": tta}, Options())
    assert (options.mode, options.tta, options.mask) == (mode, tta, "dense")


@pytest.mark.parametrize(
    ("name", "allowed"),
    [("mode", "'whole' or 'slide'"), ("tta", "'none', 'flip' or 'multiscale'")],
    ids=["mode", "tta"],
)
@pytest.mark.parametrize("value", ["Flip", "tiles", "", True, 1, None], ids=repr)
def test_parse_options_bad_mode_or_tta_raises_and_names_what_is_allowed(name, allowed, value):
    with pytest.raises(BadOptionError, match=f"^option {name}: got .*{allowed}$"):
        parse_options({name: value}, Options())


@pytest.mark.parametrize("value", ["PNG", "jpeg", "", None, 1, ["png"]], ids=repr)
def test_parse_options_bad_value_raises_and_names_what_is_allowed(value):
    with pytest.raises(
        BadOptionError, match=r"^option mask: got .*'dense', 'rle', 'png', 'polygons' or 'none'$"
    ):
        parse_options({"mask": value}, Options())


@pytest.mark.parametrize("name", ["masks", "Mask", "", "mask "], ids=repr)
def test_parse_options_unknown_option_raises_and_names_what_is_allowed(name):
    with pytest.raises(BadOptionError, match=f"^unknown option '{name}'; the options are: mask"):
        parse_options({name: "png"}, Options())


# Classes, threshold, confidence


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("dog", ("dog",)),
        ("dog, cat ,7", ("dog", "cat", "7")),
        ('["dog", 7]', ("dog", 7)),
        (' ["diningtable, round"]', ("diningtable, round",)),
        (["dog", 7, " cat "], ("dog", 7, "cat")),
        (("dog",), ("dog",)),
        (None, None),
    ],
    ids=repr,
)
def test_parse_options_classes_by_list_or_commas_are_names(value, expected):
    assert parse_options({"classes": value}, Options(classes=("cat",))).classes == expected


@pytest.mark.parametrize("value", ["", " ", "dog,,cat", ",", [], "[]", [""], ["dog", ""]], ids=repr)
def test_parse_options_classes_without_a_name_raise(value):
    with pytest.raises(
        BadOptionError,
        match=r"^option classes: got .*; expected at least one class, and none without",
    ):
        parse_options({"classes": value}, Options())


@pytest.mark.parametrize(
    "value", [7, True, [True], [1.5], [None], [["dog"]], {"dog": 1}, '[["dog"]]'], ids=repr
)
def test_parse_options_classes_that_are_no_names_raise(value):
    with pytest.raises(
        BadOptionError,
        match=r"^option classes: got .*; expected labels or ids of classes, as a list or",
    ):
        parse_options({"classes": value}, Options())


def test_parse_options_classes_of_broken_json_raise():
    with pytest.raises(
        BadOptionError,
        match=r"^option classes: got .*; expected a JSON list, because the text starts with a br",
    ):
        parse_options({"classes": '["dog"'}, Options())


@pytest.mark.parametrize(
    ("value", "expected"),
    [("0.5", 0.5), (0.5, 0.5), (1, 1.0), ("0", 0.0), ("1e-3", 0.001)],
    ids=repr,
)
def test_parse_options_threshold_as_text_or_number_is_read(value, expected):
    assert parse_options({"threshold": value}, Options()).threshold == expected


@pytest.mark.parametrize(
    "value", ["-0.1", 1.01, "nan", "inf", "half", "", None, True, [0.5], "0,5"], ids=repr
)
def test_parse_options_threshold_outside_0_to_1_raises(value):
    with pytest.raises(
        BadOptionError, match=r"^option threshold: got .*; (expected a|input should be a? ?)"
    ):
        parse_options({"threshold": value}, Options())


@pytest.mark.parametrize(
    ("value", "expected"),
    [("true", True), ("True", True), ("1", True), (True, True), ("false", False), ("0", False)],
)
def test_parse_options_confidence_as_text_or_bool_is_read(value, expected):
    assert (
        parse_options({"confidence": value}, Options(confidence=not expected)).confidence
        is expected
    )


@pytest.mark.parametrize("value", ["", "maybe", 2, None, [True]], ids=repr)
def test_parse_options_confidence_that_is_neither_raises(value):
    with pytest.raises(
        BadOptionError, match=r"^option confidence: got .*; input should be a valid boolean"
    ):
        parse_options({"confidence": value}, Options())


def test_parse_options_nothing_is_left_out_unasked():
    assert (Options().classes, Options().threshold, Options().confidence) == (None, 0.0, False)


def test_options_schema_describes_every_option():
    schema = Options.model_json_schema()
    assert set(schema["properties"]) == {
        "mask",
        "classes",
        "threshold",
        "confidence",
        "mode",
        "tta",
        "alpha",
    }
    assert all(
        len(option["description"]) > 20 and "default" in option
        for option in schema["properties"].values()
    )
    assert schema["additionalProperties"] is False


RECORD = tiny_record(
    classes=tuple(
        ClassInfo(label=label, color=(0, 0, 0))
        for label in ("background", "cat", "dog", "1", "Potted plant")
    )
)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (None, None),
        (("dog",), {2}),
        ((2, "2", "dog"), {2}),
        (("cat", 0), {0, 1}),
        (("1",), {3}),
        ((1,), {1}),
        (("Potted plant",), {4}),
    ],
    ids=[
        "all",
        "label",
        "the same thrice",
        "label and id",
        "label like an id",
        "id like a label",
        "label of two words",
    ],
)
def test_class_ids_of_labels_and_ids_are_those_of_the_record(names, expected):
    assert class_ids(names, RECORD) == expected


@pytest.mark.parametrize(
    "name",
    [5, "5", -1, "-1", "²", "٣", "9" * 5000, "dgo", "Dog", "x" * 10**6, 10**30],
    ids=lambda n: f"{n!r:.9}",
)
def test_class_ids_unknown_id_or_label_raises_with_what_is_known(name):
    with pytest.raises(
        BadOptionError,
        match=r"^option classes: got .{1,90}; the classes are: 0 background, 1 cat, 2 dog",
    ):
        class_ids([name], RECORD)
