"""What the errors of a device mean: too little memory, which passes, or a device that computes no more."""

import torch

# An allocation that fails is a type of its own only where PyTorch's own allocator for CUDA asks; the CPU's, CUDA's
# libraries and CUDA itself say it in words.
_NO_MEMORY = ("can't allocate memory", "CUDA error: out of memory", "_ALLOC_FAILED", "_ALLOCATION_FAILED")

# Of CUDA, its libraries and its driver; `HIP` is AMD's, which PyTorch drives under CUDA's name.
_FAILED = ("CUDA", "cuDNN", "CUDNN_", "CUBLAS_", "NVIDIA", "HIP error", "unable to find an engine")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error tells of too little memory, of the host or of a GPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _NO_MEMORY)


def is_device_failure(error: BaseException) -> bool:
    """Whether an error tells that a GPU is gone, broken, or was never there; that it is full is no failure."""
    if is_out_of_memory(error) or not isinstance(error, RuntimeError):
        return False
    return isinstance(error, torch.AcceleratorError) or any(sign in str(error) for sign in _FAILED)


def reason(error: BaseException) -> str:
    """An error as a part of one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
