"""Segments with the network of an ONNX file, on the CPU and without PyTorch.

OpenVINO computes it where it is installed, else ONNX Runtime.
"""

import base64
import json
import logging
from importlib.util import find_spec
from pathlib import Path
from threading import local
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..acceleration.openvino_model import (
    INT8_TOLERANCE,
    OpenVinoModel,
    OpenVinoPrecision,
    Ranges,
    has_bf16,
    quantize,
    read_onnx,
    read_ranges,
    uses_int8,
)
from ..errors import ModelError
from ..record import NETWORK_FILE, ModelRecord, named_weights, read_record, verified_file
from ..settings import Settings, check_precision
from .arrays import relative_error
from .base import BaseSegmenter, least_side_of

logger = logging.getLogger(__name__)

RECORD_PROPERTY = "made_from"
"""The property of the file with what it was made from, see `made_from`."""

LOGITS_PROPERTY = "float32_logits"
"""The property of the file with PyTorch's logits of `check_image`: float16, in base64."""

# The largest RMS difference to PyTorch's logits, in standard deviations of the logits. A wrong
# network has about 1.
_TOLERANCES = {"float32": 3e-3, "bfloat16": 0.1, "int8": INT8_TOLERANCE}


def made_from(record: ModelRecord) -> str:
    """All that a network depends on, as JSON."""
    rule = record.input
    document = {
        "weights": named_weights(record).sha256,
        "architecture": record.architecture.model_dump(mode="json"),
        "classes": len(record.classes),
        "mean": rule.mean,
        "std": rule.std,
    }
    return json.dumps(document, sort_keys=True)


def check_image() -> NDArray[np.uint8]:
    """uint8 (1, 96, 128, 3), smooth: noise causes activations that no photograph causes."""
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(noise).resize((128, 96), Image.Resampling.BICUBIC))[None]


class OnnxSegmenter(BaseSegmenter):
    """A network of ONNX on the CPU, in int8 or bf16 where OpenVINO and the settings have it. See
    `load`.
    """

    device = "cpu"

    def __init__(
        self,
        network: Path,
        record: ModelRecord,
        *,
        settings: Settings,
        threads: int,
        ranges: Ranges | None = None,
    ) -> None:
        super().__init__(record, settings)
        self._most_threads = threads
        self._threads = local()
        try:
            compiled = _compiled(network, settings, threads, ranges)
            self.backend, self.precision, self._network = compiled
            self._check()
        except (ModelError, ModuleNotFoundError):
            raise
        except Exception as error:  # neither library has exceptions of its own for this
            reason = " ".join(str(error).split())[:300]
            raise ModelError(f"{NETWORK_FILE} cannot be loaded: {reason}") from error

    def _check(self) -> None:
        """Checks that the network is the record's, and gives PyTorch's logits here."""
        properties = self._network.properties
        if properties.get(RECORD_PROPERTY) != made_from(self.record):
            raise ModelError(
                f"{NETWORK_FILE} was made from other weights or for another architecture than the "
                "record's"
            )
        logits = self.infer(check_image())
        stored = np.frombuffer(base64.b64decode(properties[LOGITS_PROPERTY]), np.float16)
        error = relative_error(logits, stored.astype(np.float32).reshape(logits.shape))
        if not error <= _TOLERANCES[self.precision]:  # also if NaN
            raise ModelError(
                f"{NETWORK_FILE}: {self.backend} computes other logits on this processor than "
                f"PyTorch: they differ by {error:.2g} standard deviations"
            )
        self._least_side_px = least_side_of(
            self.record,
            self.resize,
            lambda *size_hw: self._network.check_shape((1, *size_hw, 3)),
        )

    @classmethod
    def load(cls, folder: Path, *, settings: Settings, threads: int) -> Self:
        """Loads the segmenter of a model folder that has the network as ONNX.

        Raises:
            ModelError: the record, the weights or the network are missing or broken, or this
                runtime does not support the settings.
            ModuleNotFoundError: neither OpenVINO nor ONNX Runtime is installed.
        """
        record = read_record(folder)
        check_precision(settings, record)
        verified_file(named_weights(record), folder, "weights")
        network = folder / NETWORK_FILE
        if not network.is_file():
            raise ModelError(
                f"{record.name}: {NETWORK_FILE} is missing, which the runtime onnx needs: "
                "`segserve archive --runtime onnx` makes it, where PyTorch is installed"
            )
        failure = None
        if uses_int8(settings, record, cls.device):
            ranges = read_ranges(record, folder)
            try:
                return cls(network, record, settings=settings, threads=threads, ranges=ranges)
            except ModelError as error:
                failure = error
        segmenter = cls(network, record, settings=settings, threads=threads)
        if failure is not None:
            logger.warning("the network does not compute in int8: %s", failure)
        return segmenter

    def use_threads(self, threads: int) -> None:
        self._threads.count = threads

    def infer(self, inputs: NDArray[np.uint8]) -> NDArray[np.float32]:
        threads = getattr(self._threads, "count", self._most_threads)
        return self._network.infer(inputs, threads)

    def _resized(self, image_rgb: NDArray[np.uint8], size_hw: tuple[int, int]) -> NDArray[np.uint8]:
        height_px, width_px = size_hw
        if image_rgb.shape[:2] != size_hw:
            image = Image.fromarray(image_rgb)
            resized = image.resize((width_px, height_px), Image.Resampling.BILINEAR)
            image_rgb = np.asarray(resized)
        return image_rgb.transpose(2, 0, 1)[None]

    def _inputs(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))


def _compiled(
    network: Path, settings: Settings, threads: int, ranges: Ranges | None
) -> tuple[str, str, "OpenVinoModel | OnnxRuntimeNetwork"]:
    """The name of what computes, its precision, and the network."""
    if find_spec("openvino") is None and find_spec("onnxruntime") is not None:
        return "ONNX Runtime", "float32", OnnxRuntimeNetwork(network)
    in_bf16 = settings.precision != "fp32" and has_bf16()
    model = read_onnx(network)
    if ranges is not None:
        quantize(model, ranges)
    name = "int8" if ranges is not None else "bfloat16" if in_bf16 else "float32"
    precision: OpenVinoPrecision = "bf16" if in_bf16 else "f32"
    return "OpenVINO", name, OpenVinoModel(model, precision=precision, threads=threads)


class OnnxRuntimeNetwork:
    """An ONNX file in sessions of ONNX Runtime: one for each number of threads."""

    def __init__(self, network: Path) -> None:
        self._network = network
        self._sessions = {1: self._session(1)}
        self.properties = self._sessions[1].get_modelmeta().custom_metadata_map

    def infer(self, inputs: NDArray[Any], threads: int) -> NDArray[np.float32]:
        if threads not in self._sessions:
            self._sessions[threads] = self._session(threads)
        [logits] = self._sessions[threads].run(None, {"pixels": inputs})
        return logits  # type: ignore[no-any-return]

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raises an error if the network cannot compute inputs of this shape."""
        self.infer(np.zeros(shape, np.uint8), 1)

    def _session(self, threads: int) -> Any:  # noqa: ANN401 - onnxruntime has no types
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        return onnxruntime.InferenceSession(
            str(self._network), options, providers=["CPUExecutionProvider"]
        )
