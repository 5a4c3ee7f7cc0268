"""Classifies the errors of a device: too little memory, which is temporary, or a failure, which is
permanent.
"""

import torch

# Only PyTorch's own CUDA allocator raises a dedicated type. The CPU's allocator, CUDA's libraries
# and CUDA itself report it in the message.
_NO_MEMORY = (
    "can't allocate memory",
    "CUDA error: out of memory",
    "_ALLOC_FAILED",
    "_ALLOCATION_FAILED",
)

# From CUDA, its libraries and its driver. `HIP` is AMD's, which PyTorch uses under CUDA's name.
_FAILED = ("CUDA", "cuDNN", "CUDNN_", "CUBLAS_", "NVIDIA", "HIP error", "unable to find an engine")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means too little memory, on the host or on a GPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _NO_MEMORY)


def is_device_failure(error: BaseException) -> bool:
    """Whether an error means that a GPU is missing or broken. A full GPU memory is not a
    failure.
    """
    if is_out_of_memory(error) or not isinstance(error, RuntimeError):
        return False
    return isinstance(error, torch.AcceleratorError) or any(sign in str(error) for sign in _FAILED)


def reason(error: BaseException) -> str:
    """Formats an error as part of one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
