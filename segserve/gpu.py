"""Whether a GPU may be used, without importing PyTorch, which takes seconds."""

from importlib.util import find_spec
from pathlib import Path

# Of NVIDIA's driver, of AMD's, and of Windows's for Linux.
_DEVICES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")


def count_gpus() -> int:
    """The number of GPUs that PyTorch can use."""
    if find_spec("torch") is None or not any(Path(device).exists() for device in _DEVICES):
        return 0
    import torch

    return torch.cuda.device_count()
