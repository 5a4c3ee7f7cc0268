"""`segserve export`: one file from the picture to the class of every pixel, verified."""

import json
import shutil
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from google.protobuf import text_format
from onnx import TensorProto, helper
from PIL import Image
from tritonclient.grpc.model_config_pb2 import TYPE_UINT8, ModelConfig

from segserve.exporting import picture_model as picture_module
from segserve.exporting import write as write_module
from segserve.exporting.picture_model import _network_size, _nodes, picture_model
from segserve.exporting.write import (
    Checks,
    ExportFormat,
    PictureModel,
    export_onnx,
    export_repository,
)
from segserve.runtime.errors import ModelError
from segserve.runtime.inference.segmenter import Segmenter
from segserve.runtime.network import build_network
from segserve.runtime.record import ResizeRule, read_record
from segserve.runtime.settings import Settings
from tests.conftest import EMBEDDED

from .networks import ARCHITECTURES, randomised
from .tiny import tiny_record

pytestmark = pytest.mark.slow

PLAIN = Settings(precision="fp32", fuse=False)


def photograph(photographs, name: str, size_wh: tuple[int, int], folder: Path) -> Path:
    path = folder / f"{name}-{size_wh[0]}.png"
    (folder / "original.png").write_bytes(photographs[name])
    Image.open(folder / "original.png").convert("RGB").resize(size_wh).save(path)
    return path


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("export") / "deeplabv3.onnx"
    export_onnx(EMBEDDED, path, probabilities=True)
    return path


def test_export_of_the_embedded_model_gives_the_classes_of_pytorch(photographs, tmp_path):
    images = [
        photograph(photographs, name, size, tmp_path)
        for name in ("astronaut", "chelsea")
        for size in ((512, 512), (451, 300), (1001, 333))
    ]
    report = export_onnx(EMBEDDED, tmp_path / "model.onnx", checks=Checks(images))
    assert report.equal_pixels > 0.999
    assert report.pictures == len(images) + 6
    written = json.loads((tmp_path / "model.report.json").read_text())
    assert written == report.model_dump(mode="json")
    assert {path.name for path in tmp_path.iterdir() if path.suffix != ".png"} == {
        "model.onnx",
        "model.report.json",
    }


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_picture_model_of_any_architecture_gives_the_logits_of_pytorch(
    architecture, precision, tmp_path
):
    record = tiny_record(architecture=architecture)
    network = randomised(build_network(architecture, len(record.classes)))
    onnx.save(
        picture_model(network, record, probabilities=True, precision=precision),
        tmp_path / "model.onnx",
    )
    difference = write_module._probability_difference(
        PictureModel(tmp_path / "model.onnx"), Segmenter.of(network, record, settings=PLAIN)
    )
    assert difference < (1e-3 if precision == "fp32" else 2e-2)


RULES = [
    ResizeRule(side=side, size_px=size_px, multiple_of=multiple, max_px=max_px, rounding=rounding)
    for side, rounding, (size_px, multiple, max_px) in product(
        ("longer", "shorter"),
        ("nearest", "down", "up"),
        ((480, 16, 2048), (520, 1, 700), (96, 32, 128)),
    )
]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_resize_in_the_graph_has_the_size_of_the_rule(rule):
    graph = helper.make_graph(
        _nodes(_network_size(rule)),
        "sizes",
        [helper.make_tensor_value_info("size_hw", TensorProto.INT64, [2])],
        [helper.make_tensor_value_info("network_hw", TensorProto.INT64, [2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    rng = np.random.default_rng(0)
    for height_px, width_px in [*rng.integers(1, 3000, (300, 2)), (1, 5000), (7000, 1), (480, 480)]:
        [size] = session.run(None, {"size_hw": np.array([height_px, width_px])})
        assert tuple(size.tolist()) == rule.size_for(int(height_px), int(width_px))


def test_export_in_int8_gives_nearly_the_classes_of_pytorch_in_both_runtimes(photographs, tmp_path):
    image_file = photograph(photographs, "chelsea", (451, 300), tmp_path)
    path = tmp_path / "int8.onnx"
    report = export_onnx(EMBEDDED, path, precision="int8", checks=Checks([image_file]))
    assert report.bytes < 6e6
    assert report.equal_pixels > 0.99
    image = np.array(Image.open(image_file))
    expected = Segmenter.load(EMBEDDED, settings=PLAIN).segment(image).label_map
    label_map = PictureModel(path).label_map(image)
    by_openvino = openvino.compile_model(path, "CPU")([image[None]])[0][0]
    assert (label_map == expected).mean() > 0.99
    assert (by_openvino == expected).mean() > 0.99


def test_export_in_int8_needs_measured_ranges(tmp_path):
    record = tiny_record()
    network = build_network(record.architecture, len(record.classes))
    with pytest.raises(ModelError, match="was not measured; `segserve quantize` measures it"):
        picture_model(network, record, precision="int8")


def test_openvino_loads_the_file_and_gives_the_same_classes(exported, photographs, tmp_path):
    image = np.array(Image.open(photograph(photographs, "chelsea", (333, 251), tmp_path)))
    compiled = openvino.Core().compile_model(exported, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    got = compiled([image[None]])["label_map"][0]
    assert (got == PictureModel(exported).label_map(image)).mean() > 0.999


def test_properties_hold_the_record_and_the_palette(exported):
    properties = {each.key: each.value for each in onnx.load(exported).metadata_props}
    record = read_record(EMBEDDED)
    assert type(record).model_validate_json(properties["record"]) == record
    palette = json.loads(properties["palette"])
    assert [tuple(color) for color in palette] == [info.color for info in record.classes]
    names = json.loads(properties["class_names"])
    assert [names[str(class_id)] for class_id in range(21)] == list(record.labels)
    assert json.loads(properties["model_type"]) == "Segmentor"


def test_export_for_triton_has_a_configuration_that_triton_parses(tiny_model, tmp_path):
    export_repository(tiny_model, tmp_path, ExportFormat.TRITON, probabilities=True)
    folder = tmp_path / "tiny"
    config = text_format.Parse((folder / "config.pbtxt").read_text(), ModelConfig())
    assert (config.name, config.max_batch_size) == ("tiny", 0)
    model = onnx.load(folder / "1" / "model.onnx").graph
    for declared, values in ((config.input, model.input), (config.output, model.output)):
        assert [each.name for each in declared] == [value.name for value in values]
        for each, value in zip(declared, values, strict=True):
            rank = len(value.type.tensor_type.shape.dim)
            assert len(each.dims) == rank
    assert config.output[0].data_type == TYPE_UINT8
    assert (folder / "labels.txt").read_text().splitlines() == ["background", "cat", "dog"]


def test_export_for_openvino_server_names_the_folder_of_the_model(tiny_model, tmp_path):
    export_repository(tiny_model, tmp_path, ExportFormat.OPENVINO_SERVER)
    [entry] = json.loads((tmp_path / "config.json").read_text())["model_config_list"]
    assert entry["config"]["base_path"] == "/models/tiny"
    assert (tmp_path / "tiny" / "1" / "model.onnx").exists()
    with pytest.raises(FileExistsError, match="exists"):
        export_repository(tiny_model, tmp_path, ExportFormat.OPENVINO_SERVER)


def test_export_for_openvino_server_keeps_the_other_models(tiny_model, tmp_path):
    def model(name: str) -> dict:
        return {"config": {"name": name, "base_path": f"/models/{name}"}}

    others = [model("cats"), model("tiny")]
    earlier = {"model_config_list": others, "monitoring": {"metrics": {"enable": True}}}
    (tmp_path / "config.json").write_text(json.dumps(earlier))
    export_repository(tiny_model, tmp_path, ExportFormat.OPENVINO_SERVER)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["monitoring"] == earlier["monitoring"]
    cats, tiny = written["model_config_list"]
    assert cats == model("cats")
    assert tiny["config"]["shape"] == {"image": "(1,-1,-1,3)"}


# What is not written


@pytest.mark.parametrize(
    "content",
    ["{", "[]", "{}", '{"model_config_list": 1}', '{"model_config_list": [{"name": "cats"}]}'],
    ids=["broken", "list", "no models", "number", "no config"],
)
def test_export_for_openvino_server_beside_another_file_writes_nothing(
    tiny_model, tmp_path, content
):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelError, match=r"config\.json: expected a configuration of OpenVINO"):
        export_repository(tiny_model, tmp_path, ExportFormat.OPENVINO_SERVER)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert (tmp_path / "config.json").read_text() == content


def test_export_with_wrong_classes_in_the_pictures_is_an_error_even_with_data(
    tiny_model, tmp_path, monkeypatch
):
    accuracies = write_module.Accuracies(images=3, pytorch=0.7, onnx=0.7)
    monkeypatch.setattr(write_module, "_compared", lambda *_: (0.9995, accuracies))
    data = object()
    report = export_onnx(tiny_model, tmp_path / "model.onnx", checks=Checks(data=data))
    assert report.equal_pixels == 0.9995
    monkeypatch.setattr(PictureModel, "label_map", lambda _, image: np.full(image.shape[:2], 9))
    with pytest.raises(ModelError, match=r"0\.00% of the pixels"):
        export_onnx(tiny_model, tmp_path / "other.onnx", checks=Checks(data=data))
    assert not (tmp_path / "other.onnx").exists()


def test_export_that_gives_other_classes_leaves_nothing(tiny_model, tmp_path, monkeypatch):
    resize = picture_module._resize_picture

    def with_other_size(rule):
        return resize(rule.model_copy(update={"size_px": 32}))

    monkeypatch.setattr(picture_module, "_resize_picture", with_other_size)
    with pytest.raises(ModelError, match="nothing was written"):
        export_onnx(tiny_model, tmp_path / "out" / "model.onnx")
    assert list((tmp_path / "out").iterdir()) == []
    with pytest.raises(ModelError, match="nothing was written"):
        export_repository(tiny_model, tmp_path / "triton", ExportFormat.TRITON)
    assert list((tmp_path / "triton").iterdir()) == []


@pytest.mark.parametrize("kept", [0, 100, 0.5], ids=str)
def test_picture_model_of_a_truncated_file_is_an_error(kept, exported, tmp_path):
    content = exported.read_bytes()
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    with pytest.raises(ModelError, match="cannot load"):
        PictureModel(broken)


def test_picture_model_of_another_opset_is_an_error(exported, tmp_path):
    model = onnx.load(exported)
    model.opset_import[0].version = 999
    onnx.save(model, tmp_path / "new.onnx")
    with pytest.raises(ModelError, match="cannot load"):
        PictureModel(tmp_path / "new.onnx")


def test_picture_model_of_another_file_is_an_error(tmp_path):
    shutil.copy(EMBEDDED / "network.onnx", tmp_path)
    shutil.copy(EMBEDDED / "weights.safetensors", tmp_path)
    with pytest.raises(ModelError, match="expected the input image"):
        PictureModel(tmp_path / "network.onnx")


def test_generated_pictures_are_not_the_same_for_every_class():
    """Otherwise the comparison of probabilities would show nothing."""
    segmenter = Segmenter.load(EMBEDDED, settings=PLAIN)
    [picture, *_] = write_module._generated()
    with torch.inference_mode():
        probabilities = segmenter.infer(segmenter.preprocess(picture)).softmax(1)
    assert probabilities.amax(dim=(2, 3)).gt(0.01).sum() > 1
