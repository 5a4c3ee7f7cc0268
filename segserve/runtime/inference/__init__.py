"""RGB pixels to the class of every pixel. PyTorch is imported only if it computes."""

import logging
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ..cores import available_cores
from ..errors import ModelError
from ..record import NETWORK_FILE
from ..settings import Settings

if TYPE_CHECKING:
    from .base import BaseSegmenter

logger = logging.getLogger(__name__)


def load_segmenter(
    folder: Path, *, device: str, settings: Settings, threads: int | None = None
) -> "BaseSegmenter":
    """Loads the segmenter of a model folder. The folder is not needed afterwards.

    Args:
        device: `cpu`, or for example `cuda:0`.
        threads: CPU threads that compute for the calling thread; by default all cores.

    Raises:
        ModelError: the record or the weights are missing or broken, or do not match, or the model
            does not support the settings.
    """
    threads = threads or available_cores()
    if computes_onnx(folder, settings, device):
        from .onnx_segmenter import OnnxSegmenter

        try:
            return OnnxSegmenter.load(folder, settings=settings, threads=threads)
        except ModelError as error:
            if settings.runtime == "onnx" or not _has_torch():
                raise
            logger.warning("PyTorch computes the network, which starts more slowly: %s", error)
    import torch

    from .segmenter import load_with_failover

    torch.set_num_threads(threads)
    return load_with_failover(folder, device=torch.device(device), settings=settings)


def computes_onnx(folder: Path, settings: Settings, device: str = "cpu") -> bool:
    """Whether the network is that of the ONNX file, and not PyTorch's. See `Settings.runtime`."""
    if settings.runtime != "auto":
        return settings.runtime == "onnx"
    if not _has_torch():
        return True
    is_as_fast = device == "cpu" and settings.fuse and find_spec("openvino") is not None
    return is_as_fast and (folder / NETWORK_FILE).is_file()


def _has_torch() -> bool:
    return find_spec("torch") is not None
