"""A model compiled by OpenVINO for this processor. This module needs no PyTorch.

OpenVINO fuses norms and activations into convolutions, keeps activations in the layout of its
kernels, and computes bf16 on AVX-512 and AMX. Its threads do not wait for each other by spinning.
The results do not depend on the number of threads.
"""

from functools import cache
from pathlib import Path
from threading import Lock, local
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import openvino

OpenVinoPrecision = Literal["f32", "bf16"]


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
    """Reads an ONNX file.

    Raises:
        RuntimeError: it is not an ONNX file, or OpenVINO does not support an operation.
    """
    return _core().read_model(str(path))


class OpenVinoModel:
    """Calls of several threads run at the same time.

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
        return output  # type: ignore[no-any-return]

    def _request(self, threads: int) -> "openvino.InferRequest":
        """The calling thread's own request, which computes with this number of threads."""
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
            },
        )
