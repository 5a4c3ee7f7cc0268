"""Which errors of a device are a lack of memory, which are its end, and which are neither."""

import pytest
import torch

from segserve.runtime.acceleration.verified import is_device_failure, reason
from segserve.runtime.errors import is_out_of_memory

NO_MEMORY = {
    "CPU": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: you "
        "tried"
    ),
    "Python": MemoryError(),
    "GPU": torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of"
    ),
    "CUDA itself": torch.AcceleratorError("CUDA error: out of memory"),
    "cuBLAS": RuntimeError(
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
    ),
    "cuDNN": RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
}
FAILURES = {
    "a kernel": torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
    "gone": RuntimeError("CUDA error: unspecified launch failure"),
    "cuDNN": RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    "no engine": RuntimeError("GET was unable to find an engine to execute this computation"),
    "no driver": RuntimeError(
        "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU"
    ),
}
NEITHER = {
    "shapes": RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"),
    "two devices": RuntimeError(
        "Expected all tensors to be on the same device, but got cuda:0 and cpu"
    ),
    "not of torch": ValueError("CUDA error"),
}


@pytest.mark.parametrize("error", NO_MEMORY.values(), ids=NO_MEMORY.keys())
def test_error_of_too_little_memory_is_no_failure_of_the_device(error):
    assert is_out_of_memory(error)
    assert not is_device_failure(error)


@pytest.mark.parametrize("error", FAILURES.values(), ids=FAILURES.keys())
def test_error_of_a_broken_device_is_a_failure(error):
    assert is_device_failure(error)
    assert not is_out_of_memory(error)


@pytest.mark.parametrize("error", NEITHER.values(), ids=NEITHER.keys())
def test_error_of_a_program_is_neither(error):
    assert not is_device_failure(error)
    assert not is_out_of_memory(error)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_error_of_using_a_gpu_that_is_not_there_is_a_failure():
    with pytest.raises(Exception, match=r"NVIDIA|CUDA") as caught:
        torch.ones(1, device=torch.device("cuda", 0))
    # A build of PyTorch without CUDA has an assertion for it, which `load_segmenter` knows as well.
    assert is_device_failure(caught.value) or isinstance(caught.value, AssertionError)


def test_reason_is_one_short_line():
    assert (
        reason(RuntimeError("CUDA error:\n  no\tdevice")) == "RuntimeError: CUDA error: no device"
    )
    assert len(reason(RuntimeError("x" * 1000))) < 250
