"""Networks on a GPU: conv-BN fusion, CUDA graphs and CUDA streams.

Graphs and streams are off by default, see `settings.Acceleration`.
"""

import logging
import threading
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import cycle, pairwise
from typing import ClassVar, TypeGuard

import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name the field uses
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..errors import is_out_of_memory
from ..inference.arrays import relative_error
from .verified import OptimizationError, is_device_failure, reason, verified

logger = logging.getLogger(__name__)

Network = Callable[[Tensor], Tensor]

_GRAPHS = 16  # the first shapes get one, each with memory of its own; a warm-up has the common ones
_STREAMS = 4  # each has its own working memory; more do not use a GPU better

# RMS difference of the logits, in standard deviations of the logits. cuDNN computes float32
# convolutions in TF32, with 10 bits of mantissa. A graph runs the same kernels, or equivalent ones.
_TOLERANCES = {torch.float32: 1e-2, torch.bfloat16: 0.1}
_GRAPH_TOLERANCE = 0.1

Activation = Callable[[Tensor], Tensor]
"""An activation that may change its input."""

_ACTIVATIONS: dict[type[nn.Module], Activation] = {
    nn.ReLU: torch.relu_,
    nn.ReLU6: partial(F.hardtanh_, min_val=0.0, max_val=6.0),
    nn.Hardswish: partial(F.hardswish, inplace=True),
    nn.SiLU: partial(F.silu, inplace=True),
}


class CudaStreams:
    """A few streams of a GPU, so that a thread does not wait for the work of another.

    A thread keeps the stream that it gets first. Additional threads share streams.
    """

    def __init__(self, device: torch.device) -> None:
        torch.cuda.synchronize(device)  # the streams do not wait for work that was queued earlier
        self._streams = cycle([torch.cuda.Stream(device) for _ in range(_STREAMS)])  # type: ignore[no-untyped-call]
        self._of_thread = threading.local()

    def own(self) -> AbstractContextManager[None]:
        """Inside the context, this thread's work is queued on its own stream.

        Code that reads a result on the host waits for it there.
        """
        if not hasattr(self._of_thread, "stream"):
            self._of_thread.stream = next(self._streams)
        return torch.cuda.stream(self._of_thread.stream)


class GraphedNetwork:
    """Runs a network, (N, 3, H, W) -> logits, through one CUDA graph for each stream and shape.

    For a single image, a GPU computes most kernels in less time than Python needs to launch the
    next one. A graph launches all kernels at once, but it always reads and writes the same memory,
    so inputs and outputs are copied. If a graph fails or gives other logits, the network itself
    computes from then on, with a warning.
    """

    _lock: ClassVar = threading.Lock()
    """PyTorch allows one capture at a time in a process."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._graphs: dict[Hashable, Network] = {}
        self._has_failed = False

    def __call__(self, inputs: Tensor) -> Tensor:
        key = _stream_key(inputs), inputs.shape
        with self._lock:  # held while the work is queued, not while it is computed
            if key not in self._graphs and len(self._graphs) < _GRAPHS and not self._has_failed:
                self._record(key, inputs)
            if key in self._graphs:
                return self._graphs[key](inputs)
        return self._network(inputs)

    def _record(self, key: Hashable, inputs: Tensor) -> None:
        try:
            replay = _recorded(self._network, inputs)
            error = relative_error(replay(inputs).float(), self._network(inputs).float())
            if not error <= _GRAPH_TOLERANCE:  # also if NaN
                raise ValueError(f"its logits differ by {error:.2g} standard deviations")
            self._graphs[key] = replay
        except Exception as failure:
            self._has_failed = True
            self._graphs.clear()
            why = reason(failure)
            logger.warning("the network runs without CUDA graphs, which is slower: %s", why)


def _stream_key(inputs: Tensor) -> Hashable:
    """Identifies this thread's stream, which computes its work in the order of the queue."""
    return torch.cuda.current_stream(inputs.device).cuda_stream


def _recorded(network: Network, inputs: Tensor) -> Network:
    """A function that computes the network for inputs of this shape, in this stream. The caller
    owns each result.
    """
    given, graph = inputs.clone(), torch.cuda.CUDAGraph()
    stream = torch.cuda.Stream(inputs.device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(inputs.device))
    with torch.cuda.stream(stream):
        network(given)  # a graph must not contain the libraries' first-time setup
    stream.synchronize()
    # Other threads may allocate meanwhile.
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        gave = network(given)

    def replay(inputs: Tensor) -> Tensor:
        given.copy_(inputs)
        graph.replay()
        return gave.clone()

    return replay


def gpu_fused_network(network: nn.Module, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """Applies conv-BN fusion for inference on the device, with convolutions in `dtype`. Does not
    change `network`.

    If the logits differ from the network's logits on the CPU, it logs a warning and returns the
    network itself, which is slower but correct. See `verified` for `network`.

    Raises:
        RuntimeError: the device cannot be used, or has no memory left.
    """

    def fused(copied: nn.Module, image: Tensor) -> nn.Module:
        # Inference tensors cannot be moved later.
        with torch.inference_mode(mode=False), torch.no_grad():
            fuse(copied, image, dtype)
            return copied.to(device).to(memory_format=torch.channels_last)

    try:
        return verified(network, fused, dtype, _TOLERANCES[dtype], device)
    except OptimizationError as error:
        cause = error.__cause__
        if cause is not None and (is_device_failure(cause) or is_out_of_memory(cause)):
            raise cause from None  # not caused by the fusion
        logger.warning("the network runs unfused on %s, which is slower: %s", device, error)
        return network


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
        activation: Activation | None,
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
        return self._activation(convolved) if self._activation else convolved


@dataclass(frozen=True)
class _Call:
    """One call of a module: its input and its output."""

    name: str
    module: nn.Module
    input: Tensor
    output: Tensor


def fuse(network: nn.Module, image: Tensor, dtype: torch.dtype) -> None:
    """Replaces every convolution that runs once per image, with the norm and the activation after
    it, by a `GpuFusedConv2d`.

    Args:
        network: changed in place; a merged norm or activation becomes an `nn.Identity`.
        image: float32 (N, 3, H, W). Runs through the network to find the order of the modules.
    """
    calls = _calls(network, image)
    times = Counter(call.name for call in calls)
    for index, call in enumerate(calls):
        if _is_fusible(call.module) and times[call.name] == 1:
            followers = [each for each in _followers(calls, index) if times[each.name] == 1]
            _fuse_one(network, call.name, call.module, followers, dtype)


def _calls(network: nn.Module, image: Tensor) -> list[_Call]:
    """The innermost modules in the order of their calls."""
    calls: list[_Call] = []
    names = {module: name for name, module in _leaf_modules(network)}

    def record_call(module: nn.Module, given: tuple[Tensor, ...], gave: Tensor) -> None:
        calls.append(_Call(names[module], module, given[0], gave))

    hooks = [module.register_forward_hook(record_call) for module in names]
    try:
        network(image)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _leaf_modules(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """A norm counts as innermost: those of timm include their activation."""
    children = [] if isinstance(module, nn.BatchNorm2d) else list(module.named_children())
    if not children:
        yield name, module
    for child_name, child in children:
        yield from _leaf_modules(child, f"{name}.{child_name}" if name else child_name)


def _is_fusible(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    return (
        type(module) in (nn.Conv2d, Conv2dSame)
        and module.padding_mode == "zeros"
        and module.padding != "same"
    )


def _followers(calls: Sequence[_Call], index: int) -> Iterator[_Call]:
    """The next two calls, as long as the input of each is the output of the one before it."""
    for before, after in pairwise(calls[index : index + 3]):
        if after.input is not before.output:
            return
        yield after


def _fuse_one(
    network: nn.Module,
    name: str,
    conv: nn.Conv2d,
    followers: Sequence[_Call],
    dtype: torch.dtype,
) -> None:
    weight, bias, activation = conv.weight, conv.bias, None
    following = [(follower.name, follower.module) for follower in followers]
    norm = following[0][1] if following else None
    if isinstance(norm, nn.BatchNorm2d) and norm.track_running_stats:
        norm_name, _ = following.pop(0)
        fused = fuse_conv_bn_eval(conv, norm)
        weight, bias = fused.weight, fused.bias
        own_activation = getattr(norm, "act", nn.Identity())
        network.set_submodule(norm_name, own_activation)
        if not isinstance(own_activation, nn.Identity):
            following = [(norm_name, own_activation)]
    if following and type(following[0][1]) in _ACTIVATIONS:
        activation_name, module = following[0]
        activation = _ACTIVATIONS[type(module)]
        network.set_submodule(activation_name, nn.Identity())
    network.set_submodule(name, GpuFusedConv2d(conv, weight, bias, activation, dtype=dtype))
