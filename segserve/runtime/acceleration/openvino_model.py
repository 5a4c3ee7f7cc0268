"""Models compiled by OpenVINO for this processor, in int8 where it has VNNI. Needs no PyTorch.

int8 is static quantization as in Jacob et al. (arXiv:1712.05877). Activations are uint8, with
ranges that were measured beforehand. Weights are int8, with one scale per output channel.
"""

import ctypes
import logging
import re
import sys
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path
from threading import Lock, local
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import ModelError
from ..record import ModelRecord, Weights, safetensors_header, verified_file, write_verified
from ..settings import Settings

if TYPE_CHECKING:
    import openvino

logger = logging.getLogger(__name__)

OpenVinoPrecision = Literal["f32", "bf16"]

Ranges = Mapping[str, tuple[float, float]]
"""The smallest and the largest input value of each convolution, by the convolution's name."""

RANGES_FILE = "int8.safetensors"

LEAST_WEIGHTS = 2**14
"""Smaller convolutions stay as they are, as do depthwise ones: they gain no time, and cause half of
the error."""

INT8_TOLERANCE = 0.2
"""Largest RMS difference of the logits, in standard deviations of the logits. Trained networks have
0.03 to 0.1."""

# OpenVINO keeps what it prepared for each shape of input: this many parts of the networks, about
# 30 shapes. By default it keeps several hundred shapes.
_CACHE_CAPACITY = 1024
_TRIMMED_SHAPES = 32

_LARGEST_BYTE = 255
_LEAST_RANGE = 1e-6  # for activations and channels that are always 0
_WEIGHT_NAME = re.compile(r"\w+\.(.+)\.weight(?:\.half)?")  # the first part is the module traced


@cache
def _core() -> "openvino.Core":
    """One for the process, never destroyed.

    Each gives the thread that creates it a signal stack. Of two, the stack that the first one freed
    would be restored when the second one ends, and the next signal would end the process.
    """
    import openvino

    return openvino.Core()


def has_bf16() -> bool:
    """Whether OpenVINO computes bf16 on this processor."""
    return "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def read_onnx(path: Path) -> "openvino.Model":
    """Reads an ONNX file. Raises RuntimeError if it is none, or OpenVINO lacks an operation."""
    return _core().read_model(str(path))


@lru_cache(_TRIMMED_SHAPES)
def _release_buffers(shape: tuple[int, ...]) -> None:
    """Returns freed memory to the system after an input of a new shape.

    OpenVINO frees the buffers of the last shape. glibc keeps them in pieces that do not fit the
    next shape, so memory would grow by some megabytes with each shape. This takes a few
    milliseconds, a part of what a new shape costs anyway.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


class OpenVinoModel:
    """Calls of several threads run at the same time, each with its own number of threads.

    `properties` holds the metadata of an ONNX file.

    Args:
        model: with one input and one output.
        precision: of the multiplications.
        threads: the most that compute one call.

    Raises:
        RuntimeError: the model cannot be compiled.
    """

    def __init__(
        self, model: "openvino.Model", *, precision: OpenVinoPrecision, threads: int
    ) -> None:
        metadata = dict(model.get_rt_info().items()).get("framework", {})
        self.properties = {name: str(value.value) for name, value in metadata.items()}
        self._model = model
        self._precision = precision
        self._threads = threads
        self._compiled: dict[int, openvino.CompiledModel] = {}
        self._compiling = Lock()
        self._requests = local()
        self._request(threads)

    def infer(self, inputs: NDArray[Any], threads: int) -> NDArray[np.float32]:
        """Computes with this number of threads, or the most that it has."""
        request = self._request(min(threads, self._threads))
        [output] = request.infer([inputs], share_inputs=True).values()
        _release_buffers(inputs.shape)
        return output  # type: ignore[no-any-return]

    def check_shape(self, shape: Sequence[int]) -> None:
        """Raises RuntimeError if the model cannot compute inputs of this shape.

        Nothing is computed: after an error in `infer`, a later call may end the process.
        """
        self._model.clone().reshape(list(shape))

    def _request(self, threads: int) -> "openvino.InferRequest":
        """The calling thread's own request."""
        requests = vars(self._requests).setdefault("by_threads", {})
        if threads not in requests:
            with self._compiling:
                if threads not in self._compiled:
                    self._compiled[threads] = self._compile(threads)
            requests[threads] = self._compiled[threads].create_infer_request()
        return requests[threads]

    def _compile(self, threads: int) -> "openvino.CompiledModel":
        streams = max(1, self._threads // threads)
        return _core().compile_model(
            self._model,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": self._precision,
                "INFERENCE_NUM_THREADS": threads * streams,
                "NUM_STREAMS": streams,
                "ENABLE_CPU_PINNING": False,  # a pinned thread waits while another core is idle
                "CPU_RUNTIME_CACHE_CAPACITY": _CACHE_CAPACITY,
            },
        )


def uses_int8(settings: Settings, record: ModelRecord, device: str) -> bool:
    """Whether a model computes in int8: if its ranges were measured, on a CPU with VNNI, unless the
    settings choose another precision. Logs a warning if they choose int8 and it is impossible.
    """
    if record.int8 is None or settings.precision not in ("auto", "int8"):
        return False
    has_openvino = settings.fuse and find_spec("openvino") is not None
    is_possible = has_openvino and device == "cpu" and has_vnni()
    if settings.precision == "int8" and not is_possible:
        logger.warning("the network does not compute in int8: it needs OpenVINO, and VNNI")
    return is_possible


@cache
def has_vnni() -> bool:
    """Whether this processor multiplies int8 natively. Others are slower, and may overflow."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    except OSError:  # not Linux
        return False
    return not {"avx512_vnni", "avx_vnni"}.isdisjoint(flags)


def quantize(model: "openvino.Model", ranges: Ranges) -> None:
    """Marks the convolutions that OpenVINO then computes in int8.

    Args:
        model: converted from PyTorch or ONNX, with PyTorch's names of the weights; changed in
            place.

    Raises:
        ValueError: no convolution is large enough to gain, or the range of one was not measured.
    """
    from openvino import opset13 as operations

    large = [
        (node, weight)
        for node in model.get_ordered_ops()
        if node.get_type_name() == "Convolution"
        if (weight := _weight(node)).get_byte_size() // weight.get_element_type().size
        >= LEAST_WEIGHTS
    ]
    if not large:
        raise ValueError(f"no convolution has {LEAST_WEIGHTS} weights or more")
    for convolution, weight in large:
        named = _WEIGHT_NAME.fullmatch(weight.get_friendly_name())
        name = named[1] if named else weight.get_friendly_name()
        if name not in ranges:
            raise ValueError(f"the range of the input of {name} was not measured")
        bounds = with_exact_zero(*ranges[name])
        activations = operations.fake_quantize(
            convolution.input_value(0), *bounds, *bounds, _LARGEST_BYTE + 1
        )
        largest = np.abs(weight.get_data().astype(np.float32)).max(axis=(1, 2, 3), keepdims=True)
        largest = np.maximum(largest, _LEAST_RANGE)
        weights = operations.fake_quantize(
            convolution.input_value(1), -largest, largest, -largest, largest, _LARGEST_BYTE
        )
        for index, node in enumerate((activations, weights)):
            convolution.input(index).replace_source_output(node.output(0))


def with_exact_zero(
    least: float, largest: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The bounds of a range whose 256 steps represent 0 exactly, as padding needs it."""
    least, largest = min(least, 0.0), max(largest, 0.0)
    step = max(largest - least, _LEAST_RANGE) / _LARGEST_BYTE
    zero = round(-least / step)
    return np.array(-zero * step, np.float32), np.array((_LARGEST_BYTE - zero) * step, np.float32)


def _weight(convolution: "openvino.Node") -> "openvino.Node":
    """The constant behind a conversion to float32, if there is one."""
    node = convolution.input_value(1).get_node()
    return node if node.get_type_name() == "Constant" else node.input_value(0).get_node()


def write_ranges(ranges: Ranges, folder: Path) -> Weights:
    """Writes `folder/int8.safetensors`, float32 (2,) by name. Returns the entry for the record."""
    from safetensors.numpy import save

    content = save({name: np.array(bounds, np.float32) for name, bounds in ranges.items()})
    return write_verified(content, folder / RANGES_FILE)


def read_ranges(record: ModelRecord, folder: Path) -> Ranges:
    """The measured ranges of a model; empty if it has none. Needs no safetensors library.

    Raises:
        ModelError: the file is missing, has another SHA-256 than the record's, or is not valid.
    """
    if record.int8 is None:
        return {}
    path = verified_file(record.int8, folder, "ranges")
    try:
        begin, header = safetensors_header(path)
        tensors = path.read_bytes()[begin:]
        ranges = {}
        for name, entry in header.items():
            least, largest = np.frombuffer(tensors[slice(*entry["data_offsets"])], np.float32)
            ranges[name] = float(least), float(largest)
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path.name}: not a file of ranges: {error}") from error
    if not np.isfinite(list(ranges.values())).all():
        raise ModelError(f"{path.name}: a range is not finite")
    return ranges
