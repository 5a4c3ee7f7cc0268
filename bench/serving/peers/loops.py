"""Our code without a server: the plain loop, and the limit, an upper bound for all servers."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from segserve.runtime.decode.image import decode_image
from segserve.runtime.inference.segmenter import Segmenter
from segserve.runtime.network.weights import load_network
from segserve.runtime.record import read_record

from ..loop import Work
from ..workload import MAX_PIXELS, Workload
from .steps import OurSteps, first_device

_MOST_SHAPES = 64


def prepare_plain_loop(workload: Workload) -> Work:
    """A script with the same code: it converts an image file to its label map as PNG."""
    steps = OurSteps(workload.model, first_device())
    return lambda path: steps.encode(steps.predict(steps.decode(path.read_bytes())))


def prepare_limit(workload: Workload) -> Work:
    """Only the network, compiled and frozen, on prepared tensors: one graph for each input shape of
    the workload's images.
    """
    device = first_device()
    segmenter = Segmenter.load(workload.model, device=device)
    inputs = {path: _input(segmenter, path) for path in set(workload.requests + workload.warm_up)}
    network = load_network(read_record(workload.model), workload.model).to(device, segmenter.dtype)
    compiled = _compiled(network.to(memory_format=torch.channels_last))

    def work(path: Path) -> None:
        with torch.inference_mode():
            compiled(inputs[path])
            if device.type == "cuda":
                torch.cuda.synchronize(device)

    for path in {tensor.shape: path for path, tensor in inputs.items()}.values():
        work(path)
    return work


def _input(segmenter: Segmenter, path: Path) -> Tensor:
    """The normalised image, (1, 3, h, w): the input of the segmenter's own network."""
    with torch.inference_mode():
        return segmenter.preprocess(decode_image(path.read_bytes(), max_pixels=MAX_PIXELS))


def _compiled(network: torch.nn.Module) -> Callable[[Tensor], Tensor]:
    from torch._dynamo import config as dynamo
    from torch._inductor import config as inductor

    inductor.freezing = (
        True  # weights become constants: conv-BN fusion, weights in the kernels' layout
    )
    dynamo.recompile_limit = _MOST_SHAPES
    return torch.compile(network, dynamic=False)
