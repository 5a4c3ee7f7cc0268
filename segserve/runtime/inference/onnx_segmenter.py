"""Segments with the network of an ONNX file, on the CPU and without PyTorch.

OpenVINO computes it where it is installed, else ONNX Runtime.
"""

import logging
from importlib.util import find_spec
from pathlib import Path
from threading import local
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..acceleration.openvino_model import OpenVinoModel, has_bf16, read_onnx
from ..errors import ModelError
from ..record import NETWORK_FILE, ModelRecord, named_weights, read_record, verified_file
from ..settings import Settings
from .base import BaseSegmenter

logger = logging.getLogger(__name__)


class CompiledNetwork(Protocol):
    def infer(self, inputs: NDArray[Any], threads: int) -> NDArray[np.float32]: ...


class OnnxSegmenter(BaseSegmenter):
    """A network of ONNX on the CPU. Computes in bf16 if OpenVINO does on this processor, unless
    `precision` is fp32.
    """

    device = "cpu"

    def __init__(
        self, network: Path, record: ModelRecord, *, settings: Settings, threads: int
    ) -> None:
        """See `load`."""
        super().__init__(record, settings)
        self._most_threads = threads
        self._threads = local()
        try:
            self._backend, self.precision, self._network = _compiled(network, settings, threads)
        except Exception as error:  # neither library has exceptions of its own for this
            reason = " ".join(str(error).split())[:300]
            raise ModelError(f"{NETWORK_FILE} cannot be loaded: {reason}") from error

    @classmethod
    def load(cls, folder: Path, *, settings: Settings, threads: int) -> Self:
        """Loads the segmenter of a model folder that has the network as ONNX.

        Raises:
            ModelError: the record, the weights or the network are missing or broken, or this
                runtime does not support the settings.
        """
        record = read_record(folder)
        if settings.precision == "int8":
            raise ModelError("precision int8: the runtime onnx has bf16 and fp32 alone")
        weights = named_weights(record)
        verified_file(weights, folder, "weights")
        network = folder / NETWORK_FILE
        if not network.is_file():
            raise ModelError(
                f"{record.name}: {NETWORK_FILE} is missing, which the runtime onnx needs: "
                "`segserve archive --runtime onnx` makes it, where PyTorch is installed"
            )
        if weights.sha256.encode() not in network.read_bytes():  # its property weights_sha256
            raise ModelError(f"{NETWORK_FILE} belongs to other weights than the record's")
        return cls(network, record, settings=settings, threads=threads)

    @property
    def backend(self) -> str:
        return self._backend

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
        """uint8 (N, 3, h, w) -> uint8 (N, h, w, 3)."""
        return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))


def _compiled(network: Path, settings: Settings, threads: int) -> tuple[str, str, CompiledNetwork]:
    """The name of what computes, its precision, and the network."""
    if find_spec("openvino") is None:
        return "ONNX Runtime", "float32", _OnnxRuntimeModel(network)
    in_bf16 = settings.precision != "fp32" and has_bf16()
    model = OpenVinoModel(
        read_onnx(network), precision="bf16" if in_bf16 else "f32", threads=threads
    )
    return "OpenVINO", "bfloat16" if in_bf16 else "float32", model


class _OnnxRuntimeModel:
    """A session of ONNX Runtime for each number of threads."""

    def __init__(self, network: Path) -> None:
        self._network = network
        self._sessions: dict[int, Any] = {}

    def infer(self, inputs: NDArray[Any], threads: int) -> NDArray[np.float32]:
        session = self._sessions.get(threads)
        if session is None:
            session = self._sessions[threads] = _session(self._network, threads)
        [logits] = session.run(None, {"pixels": inputs})
        return logits  # type: ignore[no-any-return]


def _session(network: Path, threads: int) -> Any:  # noqa: ANN401 - onnxruntime has no types
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(network), options, providers=["CPUExecutionProvider"])
