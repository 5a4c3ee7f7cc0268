"""The network compiled by OpenVINO for this processor.

OpenVINO fuses norms and activations into convolutions, keeps activations in the layout of its
kernels, and computes bf16 on AVX-512 and AMX. Its threads do not wait for each other by spinning.
The logits do not depend on the number of threads.
"""

import warnings
from functools import cache
from threading import Lock, local
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.profiler import record_function

if TYPE_CHECKING:
    import openvino

_PRECISIONS = {torch.float32: "f32", torch.bfloat16: "bf16"}
_TRACED_HW = (64, 96)  # any size: the compiled network takes all sizes


@cache
def _core() -> "openvino.Core":
    """One for the process, never destroyed.

    Each gives the thread that creates it a signal stack. Of two, the stack that the first one freed
    would be restored when the second one ends, and the next signal would end the process.
    """
    import openvino

    return openvino.Core()


class OpenVinoNetwork(nn.Module):
    """A network compiled by OpenVINO for the processor.

    Shape: (N, 3, H, W) -> (N, classes, h, w), float32.

    PyTorch keeps the weights that were traced until the process ends, 4 bytes each.

    A call uses as many threads as `torch.set_num_threads` gave the calling thread. Calls of several
    threads run at the same time.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        """Compiles the network, float32 on the CPU, to compute in `dtype`.

        Raises:
            ImportError: OpenVINO is not installed.
            RuntimeError: OpenVINO does not support an operation of the network.
            ValueError: an operation depends on the size of the image: it would be compiled for one
                size.
        """
        super().__init__()
        from openvino.frontend import FrontEndManager
        from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

        image = torch.zeros(1, 3, *_TRACED_HW)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            traced = torch.jit.trace(network, image, check_trace=False)  # type: ignore[no-untyped-call]
        if any(issubclass(warning.category, torch.jit._trace.TracerWarning) for warning in caught):
            raise ValueError("an operation depends on the size of the image")
        # The front end itself, as `openvino.convert_model` reports its use to a server.
        front_end = FrontEndManager().load_by_framework("pytorch")
        decoder = TorchScriptPythonDecoder(traced, example_input=(image,))  # must outlive the load
        model = front_end.convert(front_end.load(decoder))
        model.reshape([-1, 3, -1, -1])
        self._model = model
        self._precision = _PRECISIONS[dtype]
        self._threads = torch.get_num_threads()
        self._compiled: dict[int, openvino.CompiledModel] = {}
        self._compiling = Lock()
        self._requests = local()
        self._request(self._threads)

    def forward(self, x: Tensor) -> Tensor:
        request = self._request(min(torch.get_num_threads(), self._threads))
        with record_function("OpenVINO network"):  # one operator in a profile
            [logits] = request.infer([x.float().contiguous().numpy()], share_inputs=True).values()
        return torch.from_numpy(logits)

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
