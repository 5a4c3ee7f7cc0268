"""Networks on a GPU: conv-BN fusion, CUDA graphs and CUDA streams.

Graphs and streams are off by default, see `settings.Acceleration`.

For a single image, a GPU computes most kernels in less time than Python needs to launch the next
one. A graph launches all kernels at once, but it always reads and writes the same memory. So each
input is copied to that memory, and each output is copied from it. With a stream of its own, a
thread does not wait for the work of another.
"""

import logging
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from functools import partial
from itertools import count
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import is_out_of_memory
from .fusion import Activation, fuse
from .verified import OptimizationError, is_device_failure, reason, verified

logger = logging.getLogger(__name__)

Network = Callable[[Tensor], Tensor]

# Graphs per stream; they share their memory. Few of the shapes that a resize rule gives are
# frequent.
_GRAPHS = 16

# The number of shapes that are remembered as seen once.
_SHAPES = 4096

# The largest difference, as a fraction of the largest logit. A replay runs the same kernels as the
# network, or equivalent ones.
_TOLERANCE = 0.05

_one_capture = Lock()
"""PyTorch allows one capture at a time in a process."""

# Each stream has its own working memory. More streams than this do not use a GPU better.
_STREAMS = 4


class CudaStreams:
    """A few streams of a GPU. A thread keeps the stream that it gets first. Additional threads
    share streams.

    CudaStreams do not wait for work that was queued on the device earlier. So the constructor waits
    for it.
    """

    def __init__(self, device: torch.device) -> None:
        torch.cuda.synchronize(device)
        self._streams = [torch.cuda.Stream(device) for _ in range(_STREAMS)]  # type: ignore[no-untyped-call]
        self._numbers = count()  # its `next` is atomic
        self._of_thread = threading.local()

    def own(self) -> AbstractContextManager[None]:
        """Inside the context, this thread's work is queued on its own stream.

        Code that reads a result on the host waits for it there.
        """
        if not hasattr(self._of_thread, "stream"):
            self._of_thread.stream = self._streams[next(self._numbers) % len(self._streams)]
        stream: torch.cuda.Stream = self._of_thread.stream
        return torch.cuda.stream(stream)


def uploaded(pixels: Tensor, device: torch.device) -> Tensor:
    """Copies a tensor to the device; to a GPU asynchronously, from pinned memory."""
    if device.type == "cuda":
        return pixels.pin_memory().to(device, non_blocking=True)
    return pixels.to(device)


class GraphedNetwork:
    """Runs a network through graphs. If a graph fails or gives other logits, it logs a warning and
    stops using graphs.

    When a shape is first seen, the network itself computes it. When the shape occurs again, a graph
    is recorded. Safe to use from several threads: threads that share a stream share its graphs and
    queue their work in order.

    Args:
        network: (N, 3, H, W) -> logits.
        most: graphs per stream; a new one replaces the least recently used one.
    """

    def __init__(self, network: Network, recorder: "CudaRecorder", *, most: int = _GRAPHS) -> None:
        self._network = network
        self._recorder = recorder
        self._most = most
        self._is_on = True
        self._seen: set[torch.Size] = set()
        self._graphs_by_stream = defaultdict[Hashable, OrderedDict[torch.Size, Network]](
            OrderedDict
        )
        self._lock = Lock()

    def __call__(self, inputs: Tensor) -> Tensor:
        with self._lock:  # held while the work is queued, not while it is computed
            if self._is_on and inputs.shape in self._seen:
                return self._through_a_graph(inputs)
            if len(self._seen) < _SHAPES:
                self._seen.add(inputs.shape)
        return self._network(inputs)

    def _through_a_graph(self, inputs: Tensor) -> Tensor:
        graphs = self._graphs_by_stream[self._recorder.stream_key()]
        if inputs.shape in graphs:
            graphs.move_to_end(inputs.shape)
            return graphs[inputs.shape](inputs)
        try:
            graphs[inputs.shape] = self._recorded(inputs)
        except Exception as error:
            why = reason(error)
        else:
            if len(graphs) > self._most:  # only now: without graphs, the shared memory is freed
                graphs.popitem(last=False)
            return graphs[inputs.shape](inputs)
        return self._without_graphs(inputs, why)

    def _recorded(self, inputs: Tensor) -> Network:
        replay = self._recorder.record(self._network, inputs)
        expected, logits = self._network(inputs).float(), replay(inputs).float()
        error, largest = float((logits - expected).abs().max()), float(expected.abs().max())
        if not error <= _TOLERANCE * largest:
            raise ValueError(f"its logits differ by up to {error:.2g}, of {largest:.2g}")
        return replay

    def _without_graphs(self, inputs: Tensor, why: str) -> Tensor:
        self._is_on = False
        self._graphs_by_stream.clear()
        try:
            return self._network(inputs)
        except RuntimeError as error:
            if is_device_failure(error):  # not the graph's fault: the failover logs the warning
                why = ""
            raise
        finally:
            if why:
                logger.warning("the network runs without CUDA graphs, which is slower: %s", why)


class CudaRecorder:
    """Records graphs with `torch.cuda`. Uses the current CUDA stream."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        # All graphs of a stream can share one memory pool, because they are replayed in order and
        # their outputs are copied at once. PyTorch requires one capture stream for that.
        self._pools = defaultdict[Hashable, Any](torch.cuda.graph_pool_handle)

    def stream_key(self) -> Hashable:
        """Identifies this thread's stream, which computes its work in the order of the queue."""
        return torch.cuda.current_stream(self._device).cuda_stream

    def record(self, network: Network, inputs: Tensor) -> Network:
        """Records the network for inputs of this shape, in this stream. Returns a function that
        does the same; the caller owns each result.
        """
        given = inputs.clone()
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        graph = torch.cuda.CUDAGraph()
        with _one_capture:
            with torch.cuda.stream(self._stream):
                network(given)  # a graph must not contain the libraries' first-time setup
            self._stream.synchronize()
            with torch.cuda.graph(
                graph,
                pool=self._pools[self.stream_key()],
                stream=self._stream,
                capture_error_mode="thread_local",  # other threads may allocate meanwhile
            ):
                gave = network(given)

        def replay(inputs: Tensor) -> Tensor:
            given.copy_(inputs)
            graph.replay()
            return gave.clone()

        return replay


# As in `cpu.py`, except for float32: cuDNN computes float32 convolutions in TF32, with 10
# bits of mantissa.
_TOLERANCES = {torch.float32: 1e-2, torch.bfloat16: 0.1}


class GpuFusedConv2d(nn.Module):
    """A convolution merged with the norm and the activation after it.

    Shape: as of `conv`, which becomes part of this module.

    A CUDA convolution accepts only a bias of its own dtype. So the bias is added after it, in
    float32, like the shift of the norm before. A bias that is rounded to bf16 would shift all
    pixels by the same error.
    """

    def __init__(
        self,
        conv: nn.Conv2d,
        weight: Tensor,
        bias: Tensor | None,
        activation: Activation,
        *,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        conv.weight, conv.bias = nn.Parameter(weight.to(dtype), requires_grad=False), None
        self._conv = conv
        self._bias = None
        if bias is not None:
            self._bias = nn.Parameter(bias.float().view(-1, 1, 1), requires_grad=False)
        self._activation = activation

    def forward(self, x: Tensor) -> Tensor:
        convolved: Tensor = self._conv(x)
        if self._bias is not None:
            convolved.add_(self._bias)
        return self._activation(convolved)


def gpu_fused_network(network: nn.Module, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """Applies conv-BN fusion for inference on the device, with convolutions in `dtype`. Does not
    change `network`.

    If the logits differ from the network's logits on the CPU, it logs a warning and returns the
    network itself, which is slower but correct.

    Args:
        network: float32 on the CPU, in evaluation mode; (N, 3, H, W) -> (N, classes, h, w).

    Raises:
        RuntimeError: the device cannot be used, or has no memory left.
    """

    def fused(copied: nn.Module, image: Tensor) -> "_Compared":
        # Inference tensors cannot be moved later.
        with torch.inference_mode(mode=False), torch.no_grad():
            fuse(copied, image, partial(GpuFusedConv2d, dtype=dtype))
            return _Compared(copied.to(device).to(memory_format=torch.channels_last), device)

    try:
        return verified(network, fused, dtype, _TOLERANCES[dtype]).network
    except OptimizationError as error:
        cause = error.__cause__
        if cause is not None and (is_device_failure(cause) or is_out_of_memory(cause)):
            raise cause from None  # not caused by the fusion
        logger.warning("the network runs unfused on %s, which is slower: %s", device, error)
        return network


class _Compared(nn.Module):
    """A network on a device that takes images from the CPU and returns logits to it."""

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.network = network
        self._device = device

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.network(image.to(self._device)).cpu()
        if not logits.isfinite().all():
            raise ValueError("its logits are not finite")
        return logits
