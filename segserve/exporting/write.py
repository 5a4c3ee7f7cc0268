"""Writes a model for another runtime, and verifies it: its classes must be PyTorch's."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F  # noqa: N812 - the name the field uses

from ..runtime.decode.image import decode_image
from ..runtime.encode.mask import LabelMap
from ..runtime.errors import ModelError
from ..runtime.files import whole_file, write_whole
from ..runtime.inference.onnx_segmenter import check_image
from ..runtime.inference.segmenter import Segmenter
from ..runtime.network import load_network
from ..runtime.record import ModelRecord, Strict, read_record, sha256_of
from ..runtime.settings import Settings
from ..runtime.telemetry import Timings
from . import OPSET
from .picture_model import Precision, picture_model

if TYPE_CHECKING:
    from ..training.data import LabelledImages

REPORT_SUFFIX = ".report.json"

# The fewest pixels with PyTorch's class, the largest mean difference of a probability, and the
# largest difference of the mean IoU. In fp16, the logits have an error of a thousandth; int8 moves
# the edges of objects.
_EQUAL_PIXELS: dict[Precision, float] = {"fp32": 0.999, "fp16": 0.995, "int8": 0.98}
_PROBABILITY: dict[Precision, float] = {"fp32": 1e-4, "fp16": 1e-3, "int8": 1e-2}
_MEAN_IOU: dict[Precision, float] = {"fp32": 0.001, "fp16": 0.003, "int8": 0.01}

# Sizes of the generated pictures, (width, height): common ones, odd ones, a thin one.
_SIZES = ((500, 375), (375, 500), (641, 479), (1200, 900), (97, 203), (900, 120))

_TRITON = """\
name: {name}
platform: "onnxruntime_onnx"
max_batch_size: 0  # pictures have different sizes, so each is a request of its own
input [{{ name: "image", data_type: TYPE_UINT8, dims: [ 1, -1, -1, 3 ] }}]
output [
  {{ name: "label_map", data_type: TYPE_UINT8, dims: [ 1, -1, -1 ] }}{more}
]
version_policy: {{ latest: {{ num_versions: 1 }} }}
instance_group [{{ kind: KIND_AUTO, count: 1 }}]
parameters: {{ key: "model_version", value: {{ string_value: {version} }} }}
"""
_PROBABILITIES = """,
  {{ name: "probabilities", data_type: TYPE_FP32, dims: [ 1, {classes}, -1, -1 ] }}"""


class ExportFormat(StrEnum):
    """`triton` and `openvino-server` are model repositories of these servers."""

    ONNX = "onnx"
    TRITON = "triton"
    OPENVINO_SERVER = "openvino-server"


class Accuracies(Strict):
    """Mean IoU on labelled images."""

    images: int
    pytorch: float
    onnx: float


class ExportReport(Strict):
    """What was written, and how it compares with PyTorch in float32.

    Attributes:
        equal_pixels: the share of pixels that have the same class, on the labelled images if there
            are any, else in the pictures.
        probability_difference: mean absolute difference of the classes' probabilities in the
            pictures. Classes alone would show nothing in a picture that is all background.
    """

    model: str
    version: str
    precision: Precision
    opset: int
    bytes: int
    sha256: str
    pictures: int
    equal_pixels: float
    probability_difference: float
    mean_iou: Accuracies | None = None


@dataclass(frozen=True)
class Checks:
    """What an export is verified with, besides generated pictures: photographs, and labelled images
    for the mean IoU. `progress` receives the number of finished labelled images.
    """

    images: Sequence[Path] = ()
    data: "LabelledImages | None" = None
    progress: Callable[[int], None] = lambda _finished: None


def export_onnx(
    model: Path,
    output: Path,
    *,
    precision: Precision = "fp32",
    probabilities: bool = False,
    checks: Checks | None = None,
) -> ExportReport:
    """Writes a model folder as the ONNX file `output`, and the report beside it.

    The file appears under its name only when it is verified.

    Raises:
        ModelError: the model cannot be loaded or exported, or the file gives other classes.
        OSError: a file cannot be read or written.
    """
    record = read_record(model)
    network = load_network(record, model)
    expected = Segmenter.of(network, record, settings=Settings(precision="fp32", fuse=False))
    output.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="segserve-") as folder:
        files = {has_them: Path(folder) / f"{has_them}.onnx" for has_them in {probabilities, True}}
        for has_them, path in files.items():
            exported = picture_model(network, record, probabilities=has_them, precision=precision)
            onnx.save(exported, path)
        file = files[probabilities]
        difference = _probability_difference(PictureModel(files[True]), expected)
        report = _verified(file, expected, precision, checks or Checks(), difference)
        with whole_file(output) as target, file.open("rb") as source:
            shutil.copyfileobj(source, target)
    write_whole(output.with_suffix(REPORT_SUFFIX), report.model_dump_json(indent=2) + "\n")
    return report


class PictureModel:
    """An exported file in ONNX Runtime. Thread-safe.

    Raises:
        ModelError: it is not an ONNX file, or not one that `export_onnx` has written.
    """

    def __init__(self, file: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors
        try:
            self._session = onnxruntime.InferenceSession(
                str(file), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # of onnxruntime's own types, which it does not export
            reason = " ".join(str(error).split())[:300]
            raise ModelError(f"{file.name}: ONNX Runtime cannot load it: {reason}") from error
        names = [each.name for each in (*self._session.get_inputs(), *self._session.get_outputs())]
        if names[:2] != ["image", "label_map"]:
            raise ModelError(f"{file.name}: expected the input image and the output label_map")

    def label_map(self, image_rgb: NDArray[np.uint8]) -> LabelMap:
        """uint8 (H, W, 3), RGB -> class ids, uint8 (H, W)."""
        [label_map] = self._session.run(["label_map"], {"image": image_rgb[None]})
        return label_map[0]  # type: ignore[no-any-return]

    def probabilities(self, image_rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 (H, W, 3), RGB -> float32 (classes, H, W), of a file that has this output."""
        [probabilities] = self._session.run(["probabilities"], {"image": image_rgb[None]})
        return probabilities[0]  # type: ignore[no-any-return]


def _probability_difference(exported: PictureModel, expected: Segmenter) -> float:
    """Mean absolute difference of the probabilities in the generated pictures."""
    differences = []
    for picture in _generated():
        height_px, width_px = picture.shape[:2]
        with torch.inference_mode():
            logits = expected.logits(picture, expected.plan(height_px, width_px), Timings())
            resized = F.interpolate(logits[None], size=(height_px, width_px), mode="bilinear")[0]
            probabilities = (resized / expected.record.temperature).softmax(0).numpy()
        differences.append(np.abs(exported.probabilities(picture) - probabilities).mean())
    return float(np.mean(differences))


def _verified(
    file: Path,
    expected: Segmenter,
    precision: Precision,
    checks: Checks,
    probability_difference: float,
) -> ExportReport:
    exported = PictureModel(file)
    limit = Settings().max_image_pixels
    photographs = (decode_image(path.read_bytes(), max_pixels=limit) for path in checks.images)
    pictures = [*_generated(), *photographs]
    equal = [
        float((exported.label_map(picture) == expected.segment(picture).label_map).mean())
        for picture in pictures
    ]
    shares, accuracies = [float(np.mean(equal))], None
    if checks.data is not None:
        share, accuracies = _compared(exported, expected, checks.data, checks.progress)
        shares.append(share)
    report = ExportReport(
        model=expected.record.name,
        version=expected.record.version,
        precision=precision,
        opset=OPSET,
        bytes=file.stat().st_size,
        sha256=sha256_of(file),
        pictures=len(pictures),
        equal_pixels=shares[-1],
        probability_difference=probability_difference,
        mean_iou=accuracies,
    )
    loss = accuracies.pytorch - accuracies.onnx if accuracies else 0.0
    # The differences may be NaN.
    is_same = probability_difference <= _PROBABILITY[precision] and loss <= _MEAN_IOU[precision]
    if not (is_same and all(share >= _EQUAL_PIXELS[precision] for share in shares)):
        raise ModelError(
            f"{report.model}: the file differs from PyTorch: {min(shares):.2%} of the pixels have "
            f"the same class, probabilities differ by {probability_difference:.2g} in the mean, "
            f"the mean IoU is {loss:.4f} lower; nothing was written"
        )
    return report


def _generated() -> list[NDArray[np.uint8]]:
    picture = Image.fromarray(check_image()[0])
    return [np.array(picture.resize(size, Image.Resampling.BICUBIC)) for size in _SIZES]


def _compared(
    exported: PictureModel,
    expected: Segmenter,
    data: "LabelledImages",
    progress: Callable[[int], None],
) -> tuple[float, Accuracies]:
    """The share of equal pixels among the labelled ones, and both accuracies."""
    from ..schema.request import Options
    from ..training.compare import compare
    from ..training.measure import Predictor, predictor_of

    other = Predictor(expected.record, lambda _, image: exported.label_map(image), 1, Options())
    with predictor_of(expected) as first:
        found = compare(data, first, other, progress)
    accuracies = Accuracies(
        images=len(data.names), pytorch=found.mean.first, onnx=found.mean.second
    )
    return 1 - found.changed_share, accuracies


def export_repository(
    model: Path,
    output: Path,
    kind: ExportFormat,
    *,
    precision: Precision = "fp32",
    probabilities: bool = False,
    checks: Checks | None = None,
) -> ExportReport:
    """Writes the folder of a model for Triton or OpenVINO Model Server: `output/NAME/1/model.onnx`
    with its configuration. Raises as `export_onnx`, FileExistsError, and ModelError if the folder
    has a `config.json` that is not that of OpenVINO Model Server.
    """
    record = read_record(model)
    folder = output / record.name
    if folder.exists():
        raise FileExistsError(f"{folder} exists; remove it, or take another folder")
    if kind is ExportFormat.OPENVINO_SERVER:
        _server_configuration(record, output)  # raises before anything is written
    try:
        report = export_onnx(
            model,
            folder / "1" / "model.onnx",
            precision=precision,
            probabilities=probabilities,
            checks=checks,
        )
        _write_configuration(record, output, kind, probabilities=probabilities)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return report


def _write_configuration(
    record: ModelRecord, output: Path, kind: ExportFormat, *, probabilities: bool
) -> None:
    """Writes the files beside `output/NAME/1/model.onnx`. OpenVINO Model Server's is for a
    repository that is mounted at /models.
    """
    folder = output / record.name
    write_whole(folder / "labels.txt", "".join(f"{label}\n" for label in record.labels))
    if kind is ExportFormat.TRITON:
        more = _PROBABILITIES.format(classes=len(record.classes)) if probabilities else ""
        text = _TRITON.format(
            name=json.dumps(record.name), version=json.dumps(record.version), more=more
        )
        write_whole(folder / "config.pbtxt", text)
        return
    document = _server_configuration(record, output)
    write_whole(output / "config.json", json.dumps(document, indent=2) + "\n")


def _server_configuration(record: ModelRecord, output: Path) -> dict[str, object]:
    """The content of OpenVINO Model Server's file: what it has, and the model. Raises ModelError if
    it is another file.
    """
    model = {
        "name": record.name,
        "base_path": f"/models/{record.name}",
        "shape": {"image": "(1,-1,-1,3)"},
        "model_version_policy": {"latest": {"num_versions": 1}},
    }
    file = output / "config.json"
    try:
        document = json.loads(file.read_bytes()) if file.exists() else {"model_config_list": []}
        models = document["model_config_list"]
        others = [each for each in models if each["config"]["name"] != record.name]
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"{file}: expected a configuration of OpenVINO Model Server, with model_config_list; "
            "remove it, or take another folder"
        ) from error
    return {**document, "model_config_list": [*others, {"config": model}]}
