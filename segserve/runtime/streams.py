"""Threads that compute on one GPU at once, each on a stream: the work of one need not wait for that of another."""

import threading
from contextlib import AbstractContextManager
from itertools import count

import torch
from torch import Tensor

# Each has memory of its own for what is computed at once, and more of them than this keep no GPU busier.
_STREAMS = 4


class Streams:
    """A few streams of a GPU. A thread stays with the one that it gets first; threads beyond them share.

    What was queued on the device before is done by then: streams do not wait for it themselves.
    """

    def __init__(self, device: torch.device) -> None:
        torch.cuda.synchronize(device)
        self._streams = [torch.cuda.Stream(device) for _ in range(_STREAMS)]  # type: ignore[no-untyped-call]
        self._numbers = count()  # its `next` is atomic
        self._of_thread = threading.local()

    def own(self) -> AbstractContextManager[None]:
        """Inside, this thread's work is queued on its stream. Who reads a result on the host waits for it there."""
        if not hasattr(self._of_thread, "stream"):
            self._of_thread.stream = self._streams[next(self._numbers) % len(self._streams)]
        stream: torch.cuda.Stream = self._of_thread.stream
        return torch.cuda.stream(stream)


def uploaded(pixels: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host's on the device; a GPU fetches it from pinned memory, for which nobody waits here."""
    if device.type == "cuda":
        return pixels.pin_memory().to(device, non_blocking=True)
    return pixels.to(device)
