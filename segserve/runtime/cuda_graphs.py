"""A network on a GPU whose kernels are launched at once, as a CUDA graph for each shape of its input.

A GPU computes most kernels for a single image in less time than Python takes to launch the next one. A graph launches
all of them in one go, but reads and writes always the same memory: input is copied there, and output from there.
"""

import logging
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Any, Protocol

import torch
from torch import Tensor

from .device import is_device_failure, reason

logger = logging.getLogger(__name__)

Network = Callable[[Tensor], Tensor]

# Graphs of one lane, which share their memory. Of the shapes that a resize rule gives, few are frequent.
_GRAPHS = 16

# Shapes of which it is remembered that they were seen once.
_SHAPES = 4096

# Of the largest logit. Replay and network run the same kernels, or such that do the same.
_TOLERANCE = 0.05

_one_capture = Lock()
"""PyTorch allows one capture at a time in a process."""


class Recorder(Protocol):
    """What is asked of a device that has graphs; it is called by one thread at a time."""

    def lane(self) -> Hashable:
        """Where this thread's work is queued: what is in one lane is computed in the order in which it was asked."""

    def record(self, network: Network, inputs: Tensor) -> Network:
        """What does the same as the network for inputs of that shape, in this lane. Its result is the caller's own."""


class GraphedNetwork:
    """The network through graphs; without them from the first one on that fails or gives other logits, with a warning.

    A shape is computed by the network itself when it is first seen, and recorded when it comes again. Safe to use from
    several threads: those that share a lane share its graphs, and queue their work one after the other.

    Args:
        network: (N, 3, H, W) -> logits.
        most: graphs a lane; the one that was used longest ago leaves for a new one.
    """

    def __init__(self, network: Network, recorder: Recorder, *, most: int = _GRAPHS) -> None:
        self._network = network
        self._recorder = recorder
        self._most = most
        self._is_on = True
        self._seen: set[torch.Size] = set()
        self._lanes: defaultdict[Hashable, OrderedDict[torch.Size, Network]] = defaultdict(OrderedDict)
        self._lock = Lock()

    def __call__(self, inputs: Tensor) -> Tensor:
        with self._lock:  # for as long as it takes to queue the work, not to compute it
            if self._is_on and inputs.shape in self._seen:
                return self._through_a_graph(inputs)
            if len(self._seen) < _SHAPES:
                self._seen.add(inputs.shape)
        return self._network(inputs)

    def _through_a_graph(self, inputs: Tensor) -> Tensor:
        graphs = self._lanes[self._recorder.lane()]
        if inputs.shape in graphs:
            graphs.move_to_end(inputs.shape)
            return graphs[inputs.shape](inputs)
        try:
            graphs[inputs.shape] = self._recorded(inputs)
        except Exception as error:
            why = reason(error)
        else:
            if len(graphs) > self._most:  # not before: the memory that they share would go with the last of them
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
        self._lanes.clear()
        try:
            return self._network(inputs)
        except RuntimeError as error:
            if is_device_failure(error):  # it was not the graph that failed, and who sees to the device warns of it
                why = ""
            raise
        finally:
            if why:
                logger.warning("the network runs without CUDA graphs, which is slower: %s", why)


class CudaRecorder:
    """Records with `torch.cuda`. A lane is the stream that is current."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        # Replayed one after the other, and their output copied at once, all graphs of a lane can use the same memory;
        # PyTorch asks for one stream to capture on for that.
        self._pools = defaultdict[Hashable, Any](torch.cuda.graph_pool_handle)

    def lane(self) -> Hashable:
        return torch.cuda.current_stream(self._device).cuda_stream

    def record(self, network: Network, inputs: Tensor) -> Network:
        given = inputs.clone()
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        graph = torch.cuda.CUDAGraph()
        with _one_capture:
            with torch.cuda.stream(self._stream):
                network(given)  # what libraries allocate and choose the first time is no part of a graph
            self._stream.synchronize()
            with torch.cuda.graph(
                graph,
                pool=self._pools[self.lane()],
                stream=self._stream,
                capture_error_mode="thread_local",  # other threads allocate, copy and wait as before meanwhile
            ):
                gave = network(given)

        def replay(inputs: Tensor) -> Tensor:
            given.copy_(inputs)
            graph.replay()
            return gave.clone()

        return replay
