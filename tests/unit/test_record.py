"""The record of a model: what it accepts, what it rejects and in which words, and writing it
back.
"""

import hashlib
import re
from fractions import Fraction

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms.functional import _compute_resized_output_size

from segserve.recipe import Recipe
from segserve.runtime.errors import ModelError
from segserve.runtime.record import (
    RECORD_FILE,
    Accuracy,
    Architecture,
    Checkpoint,
    ClassInfo,
    InputRule,
    ModelRecord,
    ResizeRule,
    Weights,
    read_document,
    read_record,
    sha256_of,
    write_record,
)
from segserve.runtime.settings import CONFIG_FILE

from ..conftest import EMBEDDED, PROJECT
from .tiny import tiny_record

SHA256 = "0123456789abcdef" * 4
MODEL_FOLDERS = sorted(path.parent for path in (PROJECT / "model").glob(f"*/{RECORD_FILE}"))
RECIPES = sorted(
    path
    for folder in MODEL_FOLDERS
    for path in folder.glob("*.yaml")
    if path.name not in (RECORD_FILE, CONFIG_FILE)
)


def document(**changes) -> dict:
    return {**tiny_record().model_dump(mode="json", exclude_none=True), **changes}


def rejection(folder, content: str | bytes | dict) -> str:
    text = yaml.safe_dump(content) if isinstance(content, dict) else content
    (folder / RECORD_FILE).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ModelError, match=r"^model\.yaml: ") as caught:
        read_record(folder)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


# Checked-in models


@pytest.mark.parametrize("folder", MODEL_FOLDERS, ids=lambda folder: folder.name)
def test_read_record_every_model_of_the_project_reads(folder):
    record = read_record(folder)
    assert record.labels[0] == "background"
    assert len(record.palette) == 3 * len(record.classes)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name} {path.stem}")
def test_read_recipe_every_recipe_of_the_project_reads(path):
    assert read_document(path, Recipe).steps > 0


def test_model_folders_hold_the_embedded_model():
    assert EMBEDDED in MODEL_FOLDERS


@pytest.mark.parametrize("folder", MODEL_FOLDERS, ids=lambda folder: folder.name)
def test_write_record_of_a_project_model_gives_the_same_file(folder, tmp_path):
    write_record(read_record(folder), tmp_path)
    assert (tmp_path / RECORD_FILE).read_text() == (folder / RECORD_FILE).read_text()


def test_embedded_palette_is_that_of_pascal_voc():
    def voc(
        class_id,
    ):  # the bits of the id, dealt to R, G and B from the top: the VOC devkit's labelcolormap
        bits = [
            (class_id >> (3 * place + channel)) & 1 for channel in range(3) for place in range(8)
        ]
        return tuple(
            sum(bits[8 * channel + place] << (7 - place) for place in range(8))
            for channel in range(3)
        )

    assert [info.color for info in read_record(EMBEDDED).classes] == [
        voc(class_id) for class_id in range(21)
    ]


# Round trip

text = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Zl", "Zp")), max_size=40)
label = text.map(lambda drawn: " ".join(drawn.split())).filter(
    lambda drawn: re.fullmatch(r"\S(.*\S)?", drawn)
)
unit = st.floats(0, 1)
positive_unit = st.floats(0, 1, exclude_min=True)
byte = st.integers(0, 255)
records = st.builds(
    ModelRecord,
    name=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,20}", fullmatch=True),
    version=st.from_regex(r"[0-9]{1,3}\.[0-9]{1,3}(\.[0-9]{1,3})?", fullmatch=True),
    summary=text,
    licence=text,
    source=text,
    architecture=st.builds(
        Architecture,
        backbone=st.sampled_from(["resnet18", "tf_efficientnet_lite0.in1k"]),
        aspp_rates=st.lists(st.integers(1, 99), max_size=5).map(tuple),
        aspp_dropout=st.floats(0, 1, exclude_max=True),
        aspp_sep_conv=st.booleans(),
        aux_head=st.booleans(),
        use_l5_exp=st.booleans(),
    ),
    input=st.builds(
        InputRule,
        resize=st.builds(
            ResizeRule,
            size_px=st.integers(1, 9999),
            multiple_of=st.integers(1, 64),
            rounding=st.sampled_from(["nearest", "down", "up"]),
        ),
        mean=st.tuples(unit, unit, unit),
        std=st.tuples(positive_unit, positive_unit, positive_unit),
    ),
    checkpoint=st.none()
    | st.builds(
        Checkpoint,
        file=st.just("a-01234567.pth"),
        base_url=st.just("https://example.org/models/"),
        sha256=st.just(SHA256),
        size_mib=st.floats(0, 1e6, exclude_min=True),
    ),
    weights=st.none()
    | st.builds(Weights, file=st.just("weights.safetensors"), sha256=st.just(SHA256)),
    accuracy=st.none()
    | st.builds(
        Accuracy,
        dataset=text,
        images=st.none() | st.integers(1, 10**6),
        mean_iou=unit,
        pixel_accuracy=unit,
        class_iou=st.dictionaries(text, unit, max_size=4),
    ),
    classes=st.lists(
        st.builds(ClassInfo, label=label, color=st.tuples(byte, byte, byte)),
        min_size=2,
        max_size=8,
        unique_by=lambda info: info.label,
    ).map(tuple),
)


@given(records)
def test_write_record_then_read_record_gives_the_same(tmp_path_factory, record):
    folder = tmp_path_factory.mktemp("record")
    write_record(record, folder)
    assert read_record(folder) == record


def test_write_record_keeps_rows_of_numbers_on_one_line(tmp_path):
    write_record(tiny_record(), tmp_path)
    written = (tmp_path / RECORD_FILE).read_text()
    assert "  aspp_rates: [1, 2]\n" in written
    assert "- label: dog\n  color: [64, 0, 128]\n" in written


def test_write_record_leaves_out_what_was_left_at_its_default(tmp_path):
    write_record(
        tiny_record(architecture=Architecture(backbone="resnet18", head="corenet")), tmp_path
    )
    assert (
        "architecture:\n  backbone: resnet18\n  head: corenet\ninput:"
        in (tmp_path / RECORD_FILE).read_text()
    )


# Architecture and resize rule


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, 0.5),
        ({"head": "corenet"}, 0.1),
        ({"head": "multiscale"}, 0.1),
        ({"head": "corenet", "aspp_dropout": 0.3}, 0.3),
    ],
    ids=["deeplabv3", "corenet", "multiscale", "written"],
)
def test_architecture_dropout_is_that_of_the_heads_source(fields, expected):
    assert Architecture(backbone="resnet18", **fields).aspp_dropout == expected


def test_architecture_defaults_are_corenets():
    architecture = Architecture(backbone="resnet18", head="multiscale")
    assert architecture.aspp_rates == (6, 12, 18)
    assert (architecture.aspp_out_channels, architecture.aspp_in_channels) == (256, 512)
    assert not architecture.aspp_sep_conv
    assert not architecture.use_l5_exp


side_px = st.integers(1, 20_000)
rounding = st.sampled_from(["nearest", "down", "up"])


@given(height_px=side_px, width_px=side_px, size_px=st.integers(1, 1024))
def test_size_for_rounded_down_is_that_of_torchvision(height_px, width_px, size_px):
    rule = ResizeRule(side="shorter", size_px=size_px, max_px=10**8, rounding="down")
    assert rule.size_for(height_px, width_px) == tuple(
        _compute_resized_output_size((height_px, width_px), [size_px])
    )


@given(height_px=side_px, width_px=side_px, multiple_of=st.integers(1, 64), rounding=rounding)
def test_size_for_never_passes_the_limit(height_px, width_px, multiple_of, rounding):
    rule = ResizeRule(
        side="shorter", size_px=520, multiple_of=multiple_of, max_px=2048, rounding=rounding
    )
    for length_px in rule.size_for(height_px, width_px):
        assert 1 <= length_px <= 2048
        assert length_px % multiple_of == 0


@given(height_px=side_px, width_px=side_px, multiple_of=st.integers(1, 64))
def test_size_for_rounded_up_is_the_next_multiple(height_px, width_px, multiple_of):
    rule = ResizeRule(size_px=520, multiple_of=multiple_of, max_px=10**8, rounding="up")
    for length_px, whole_px in zip(
        rule.size_for(height_px, width_px), (height_px, width_px), strict=True
    ):
        exact_px = Fraction(whole_px * 520, max(height_px, width_px))
        assert exact_px <= length_px < exact_px + multiple_of


# Rejections


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (document(colour="red"), "colour: unknown key"),
        (document(**{"a\nb": 1}), "a b: unknown key"),
        (document(name=None), "name: Input should be a valid string"),
        (document(name="../x"), "name: String should match pattern"),
        (document(name="a\n"), "name: String should match pattern"),
        (document(source="two\nlines"), "source: String should match pattern"),
        (document(summary="next\x85line"), "summary: String should match pattern"),
        (document(version="one"), "version: String should match pattern"),
        (document(classes=[]), "classes: Tuple should have at least 2 items"),
        (
            document(classes=[{"label": "a", "color": [0, 0, 0]}] * 2),
            "label a stands more than once",
        ),
        (
            document(classes=[{"color": [0, 0, 0]}, {"label": "b", "color": [1, 1, 1]}]),
            "classes.0.label: is missing",
        ),
        (
            document(
                classes=[{"label": "", "color": [0, 0, 0]}, {"label": "b", "color": [1, 1, 1]}]
            ),
            "classes.0.label",
        ),
        (
            document(
                classes=[{"label": "a\nb", "color": [0, 0, 0]}, {"label": "b", "color": [1, 1, 1]}]
            ),
            "classes.0.label",
        ),
        (
            document(classes=[{"label": "a", "color": [0, 0]}, {"label": "b", "color": [1, 1, 1]}]),
            "classes.0.color.2",
        ),
        (
            document(
                classes=[{"label": "a", "color": [0] * 4}, {"label": "b", "color": [1, 1, 1]}]
            ),
            "classes.0.color",
        ),
        (
            document(
                classes=[{"label": "a", "color": [0, 0, 256]}, {"label": "b", "color": [1, 1, 1]}]
            ),
            "classes.0.color.2",
        ),
        (
            document(classes=[{"label": "a", "color": "red"}, {"label": "b", "color": [1, 1, 1]}]),
            "classes.0.color",
        ),
        (
            document(classes=[{"label": str(i), "color": [0, 0, 0]} for i in range(256)]),
            "classes: .*at most 255",
        ),
        (
            document(weights={"file": "w.safetensors", "sha256": SHA256[:-1]}),
            "weights.sha256: String should match",
        ),
        (
            document(weights={"file": "w.safetensors", "sha256": SHA256.upper()}),
            "weights.sha256: String should match",
        ),
        (document(weights={"file": "w.safetensors"}), "weights.sha256: is missing"),
        (
            document(weights={"file": "../w.safetensors", "sha256": SHA256}),
            "weights.file: String should match",
        ),
        (
            document(weights={"file": "/w.safetensors", "sha256": SHA256}),
            "weights.file: String should match",
        ),
        (
            document(weights={"file": "w.pth", "sha256": SHA256}),
            "weights.file: String should match",
        ),
        (
            document(architecture={"backbone": "resnet18", "output_stride": 4}),
            "architecture.output_stride: .*8, 16 or 32",
        ),
        (
            document(architecture={"backbone": "hf-hub:a/b"}),
            "architecture.backbone: String should match",
        ),
        (
            document(architecture={"backbone": "resnet18", "aspp_in_channels": 64}),
            "architecture: .*only the head multiscale has aspp_in_channels, not deeplabv3",
        ),
        (
            document(
                architecture={
                    "backbone": "resnet18",
                    "head": "corenet",
                    "output_upsample_factor": 2,
                }
            ),
            "architecture: .*only the head multiscale has output_upsample_factor, not corenet",
        ),
        (
            document(
                architecture={
                    "backbone": "resnet18",
                    "head": "multiscale",
                    "output_upsample_factor": 3,
                }
            ),
            "architecture.output_upsample_factor: .*1, 2, 4 or 8",
        ),
        (
            document(
                checkpoint={
                    "file": "../a.pth",
                    "base_url": "https://a.b/",
                    "sha256": SHA256,
                    "size_mib": 1,
                }
            ),
            "checkpoint.file: String should match",
        ),
        (
            document(
                checkpoint={
                    "file": "a.pth",
                    "base_url": "http://a.b/",
                    "sha256": SHA256,
                    "size_mib": 1,
                }
            ),
            "checkpoint.base_url: String should match",
        ),
        (
            document(architecture={"backbone": "resnet18", "aspp_dropout": 1}),
            "architecture.aspp_dropout: .*less than 1",
        ),
        (
            document(architecture={"backbone": "resnet18", "aspp_rates": [0]}),
            "architecture.aspp_rates.0: .*greater",
        ),
        (
            document(input={"resize": {"size_px": 9}, "mean": [0, 0, 0], "std": [1, 1, 0]}),
            "input.std.2: .*greater than 0",
        ),
        (
            document(input={"resize": {"size_px": 9}, "mean": [0, 0, 2], "std": [1, 1, 1]}),
            "input.mean.2: .*less than",
        ),
        (
            document(
                input={"resize": {"size_px": 9}, "mean": [0, 0, float("nan")], "std": [1, 1, 1]}
            ),
            "input.mean.2",
        ),
        (
            document(
                input={
                    "resize": {"size_px": 9, "multiple_of": 32, "max_px": 31},
                    "mean": [0, 0, 0],
                    "std": [1, 1, 1],
                }
            ),
            "input.resize: .*max_px is 31, below multiple_of, which is 32",
        ),
        ("", "Input should be a valid dictionary"),
        ("- a", "Input should be a valid dictionary"),
        ("a: [", "cannot be read"),
        ("a: b: c", "cannot be read"),
        ("a: !!python/object/apply:os.getcwd []", "cannot be read"),
        ("a: 2024-13-45", "cannot be read"),
        ("[" * 1500, "cannot be read"),
        (b"\xff\xfe\xfa", "cannot be read"),
        (b"a: \0", "cannot be read"),
    ],
    ids=lambda value: value[:45] if isinstance(value, str) else "",
)
def test_read_record_broken_file_raises_one_line_that_names_the_key(tmp_path, content, message):
    assert re.search(message, rejection(tmp_path, content))


def test_read_record_reports_every_broken_rule_at_once(tmp_path):
    message = rejection(tmp_path, document(version=1, licence=None, colour="red"))
    assert all(key in message for key in ("version: ", "licence: ", "colour: unknown key"))


@pytest.mark.parametrize(
    "key", ["name", "version", "summary", "licence", "source", "architecture", "input", "classes"]
)
def test_read_record_missing_key_is_named(tmp_path, key):
    content = document()
    del content[key]
    assert rejection(tmp_path, content) == f"model.yaml: {key}: is missing"


def test_read_record_missing_file_raises_one_line(tmp_path):
    with pytest.raises(ModelError, match=r"^model\.yaml: cannot be read: .*No such file"):
        read_record(tmp_path / "nowhere")


def test_record_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        tiny_record().name = "other"


def test_sha256_of_equals_hashlib(tmp_path):
    content = bytes(range(256)) * 9999
    (tmp_path / "file").write_bytes(content)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(content).hexdigest()
