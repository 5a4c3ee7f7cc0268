"""Loads the segmenter of a model folder. PyTorch is imported only if it computes."""

from importlib.util import find_spec
from pathlib import Path

from ..settings import Settings
from .base import AnySegmenter


def load_segmenter(
    folder: Path, *, device: str, settings: Settings, threads: int | None = None
) -> AnySegmenter:
    """Loads the segmenter of a model folder. The folder is not needed afterwards.

    Args:
        device: `cpu`, or for example `cuda:0`.
        threads: CPU threads that compute for the calling thread; by default all cores.

    Raises:
        ModelError: the record or the weights are missing or broken, or do not match, or the model
            does not support the settings.
    """
    if uses_onnx(settings):
        from ..cores import available_cores
        from .onnx_segmenter import OnnxSegmenter

        return OnnxSegmenter.load(folder, settings=settings, threads=threads or available_cores())
    import torch

    from .failover import load_with_failover

    if threads is not None:
        torch.set_num_threads(threads)
    return load_with_failover(folder, device=torch.device(device), settings=settings)


def uses_onnx(settings: Settings) -> bool:
    """Whether the network is that of the ONNX file, and not PyTorch's."""
    if settings.runtime == "auto":
        return find_spec("torch") is None
    return settings.runtime == "onnx"
