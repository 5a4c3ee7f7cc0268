"""CUDA streams for threads that share one GPU, so that a thread does not wait for the work of
another.
"""

import threading
from contextlib import AbstractContextManager
from itertools import count

import torch
from torch import Tensor

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
    """Copies a tensor from the host to the device. A copy to a GPU uses pinned memory and is
    asynchronous.
    """
    if device.type == "cuda":
        return pixels.pin_memory().to(device, non_blocking=True)
    return pixels.to(device)
