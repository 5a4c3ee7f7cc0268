"""The runtime `onnx`: the same classes as PyTorch's, and no PyTorch."""

import base64
import io
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from segserve.archive import build_archive
from segserve.exporting import write_graph
from segserve.local import LocalSegmenter
from segserve.runtime.errors import ModelError
from segserve.runtime.inference import computes_onnx, load_segmenter
from segserve.runtime.inference.onnx_segmenter import (
    LOGITS_PROPERTY,
    OnnxRuntimeNetwork,
    OnnxSegmenter,
)
from segserve.runtime.inference.segmenter import Segmenter
from segserve.runtime.network import build_network
from segserve.runtime.record import NETWORK_FILE, WEIGHTS_FILE, read_record, write_record
from segserve.runtime.settings import Settings
from segserve.training.model_folder import export_weights
from tests.conftest import EMBEDDED, PROJECT

from .networks import ARCHITECTURES, randomised
from .tiny import tiny_record

FP32 = Settings(precision="fp32")

WITHOUT_TORCH = """
import sys
class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "timm", "safetensors", "ts"):
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, NotInstalled())
import importlib.util
find_spec = importlib.util.find_spec
def spec_of(name, package=None):
    return None if name in ("torch", "ts") else find_spec(name, package)
importlib.util.find_spec = spec_of
from segserve.local import LocalSegmenter
segmenter = LocalSegmenter(sys.argv[1])
print([row.label for row in segmenter.segment(sys.argv[2]).classes])
"""


def onnx_of(folder: Path, *, threads: int = 1) -> OnnxSegmenter:
    return OnnxSegmenter.load(folder, settings=FP32, threads=threads)


@pytest.fixture(scope="module")
def exported(tiny_model, tmp_path_factory) -> Path:
    folder = Path(shutil.copytree(tiny_model, tmp_path_factory.mktemp("onnx") / "tiny"))
    write_graph(folder, folder)
    return folder


@pytest.fixture(scope="module")
def image_rgb(photographs) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(photographs["astronaut"])).convert("RGB"))


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
def test_write_graph_of_any_architecture_gives_the_logits_of_pytorch(architecture, tmp_path):
    record = tiny_record(architecture=architecture)
    network = randomised(build_network(architecture, len(record.classes)))
    export_weights(network, record, tmp_path)
    write_graph(tmp_path, tmp_path)  # it compares at two sizes
    assert (tmp_path / NETWORK_FILE).stat().st_size < 1_000_000


@pytest.mark.parametrize(
    "options", [{}, {"mode": "slide"}, {"tta": "flip"}, {"tta": "multiscale"}], ids=str
)
def test_segment_gives_the_classes_of_pytorch(options, image_rgb):
    ours = onnx_of(EMBEDDED).segment(image_rgb, **options)
    expected = Segmenter.load(EMBEDDED, settings=FP32).segment(image_rgb, **options)
    assert (ours.label_map == expected.label_map).mean() > 0.999
    assert [area.id for area in ours.classes] == [area.id for area in expected.classes]
    assert ours.quality.confidence == pytest.approx(expected.quality.confidence, abs=1e-3)


def test_embedded_model_has_the_graph_that_is_made_of_it(tmp_path, image_rgb):
    folder = Path(shutil.copytree(EMBEDDED, tmp_path / "embedded"))
    (folder / NETWORK_FILE).unlink()
    write_graph(folder, folder)
    inputs = onnx_of(EMBEDDED).preprocess(image_rgb)
    np.testing.assert_allclose(
        onnx_of(EMBEDDED).infer(inputs), onnx_of(folder).infer(inputs), atol=1e-3
    )


def test_segment_gives_the_same_bits_on_every_number_of_threads(exported, image_rgb):
    segmenter = onnx_of(exported, threads=3)

    def logits(threads: int) -> bytes:
        segmenter.use_threads(threads)
        return segmenter.infer(segmenter.preprocess(image_rgb)).tobytes()

    with ThreadPoolExecutor(3) as pool:
        assert len({*pool.map(logits, (1, 2, 3, 1, 2, 3))}) == 1


def test_onnx_runtime_gives_the_logits_of_openvino(exported, image_rgb):
    segmenter = onnx_of(exported)
    inputs = segmenter.preprocess(image_rgb)
    logits = OnnxRuntimeNetwork(exported / NETWORK_FILE).infer(inputs, 1)
    np.testing.assert_allclose(logits, segmenter.infer(inputs), atol=1e-3)


def test_local_segmenter_works_where_pytorch_is_not_installed(exported, tmp_path, photographs):
    cat = tmp_path / "cat.png"
    cat.write_bytes(photographs["chelsea"])
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, EMBEDDED, cat],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "cat" in done.stdout


def test_archive_for_the_runtime_carries_the_graph(tiny_model, tmp_path, image_rgb):
    archive = build_archive(tiny_model, tmp_path, runtime="onnx")
    ours = LocalSegmenter(archive)
    assert ours._pipeline.segmenter.backend == "OpenVINO"
    assert isinstance(ours._pipeline.segmenter, OnnxSegmenter)
    with_torch = LocalSegmenter(archive, runtime="torch")
    assert isinstance(with_torch._pipeline.segmenter, Segmenter)


# What cannot be loaded


def test_load_without_the_graph_says_how_to_make_it(tiny_model):
    with pytest.raises(ModelError, match="archive --runtime onnx"):
        onnx_of(tiny_model)


def broken(exported: Path, folder: Path) -> Path:
    return Path(shutil.copytree(exported, folder / "broken"))


@pytest.mark.parametrize("kept", [0, 100, 0.5, 0.99], ids=str)
def test_load_of_a_truncated_graph_is_an_error(kept, exported, tmp_path):
    folder = broken(exported, tmp_path)
    content = (folder / NETWORK_FILE).read_bytes()
    kept_bytes = kept if isinstance(kept, int) else int(len(content) * kept)
    (folder / NETWORK_FILE).write_bytes(content[:kept_bytes])
    with pytest.raises(ModelError, match=NETWORK_FILE.replace(".", r"\.")):
        onnx_of(folder)


def test_load_of_the_graph_of_other_weights_is_an_error(exported, tmp_path):
    folder = broken(exported, tmp_path)
    sha256 = read_record(folder).weights.sha256.encode()
    content = (folder / NETWORK_FILE).read_bytes()
    (folder / NETWORK_FILE).write_bytes(content.replace(sha256, sha256[::-1]))
    with pytest.raises(ModelError, match="made from other weights"):
        onnx_of(folder)


def test_load_of_the_graph_of_another_record_is_an_error(exported, tmp_path):
    folder = broken(exported, tmp_path)
    record = read_record(folder)
    write_record(record.model_copy(update={"classes": record.classes[:-1]}), folder)
    with pytest.raises(ModelError, match="another architecture"):
        onnx_of(folder)


def test_load_with_changed_weights_is_an_error(exported, tmp_path):
    folder = broken(exported, tmp_path)
    content = bytearray((folder / WEIGHTS_FILE).read_bytes())
    content[-1] ^= 1
    (folder / WEIGHTS_FILE).write_bytes(content)
    with pytest.raises(ModelError, match="SHA-256"):
        onnx_of(folder)


def test_load_of_a_network_that_computes_other_logits_is_an_error(exported, tmp_path):
    folder = broken(exported, tmp_path)
    graph = onnx.load(folder / NETWORK_FILE, load_external_data=False)
    [properties] = [each for each in graph.metadata_props if each.key == LOGITS_PROPERTY]
    logits = np.frombuffer(base64.b64decode(properties.value), np.float16)
    properties.value = base64.b64encode(logits[::-1].tobytes()).decode()
    onnx.save(graph, folder / NETWORK_FILE)
    with pytest.raises(ModelError, match="other logits"):
        onnx_of(folder)


def test_load_segmenter_of_a_broken_graph_computes_with_pytorch(exported, tmp_path, caplog):
    folder = broken(exported, tmp_path)
    (folder / NETWORK_FILE).write_bytes(b"")
    assert isinstance(load_segmenter(folder, device="cpu", settings=FP32), Segmenter)
    assert "PyTorch computes" in caplog.text


@pytest.mark.parametrize(
    ("changes", "device", "expected"),
    [
        ({}, "cpu", True),
        ({}, "cuda:0", False),
        ({"fuse": False}, "cpu", False),
        ({"precision": "int8"}, "cpu", True),
        ({"runtime": "torch"}, "cpu", False),
        ({"runtime": "onnx"}, "cuda:0", True),
    ],
    ids=str,
)
def test_computes_onnx_depends_on_device_and_settings(changes, device, expected):
    assert computes_onnx(EMBEDDED, Settings(**changes), device) is expected


def test_computes_onnx_of_a_model_without_the_graph_only_if_set(tiny_model):
    assert not computes_onnx(tiny_model, Settings())
    assert computes_onnx(tiny_model, Settings(runtime="onnx"))
