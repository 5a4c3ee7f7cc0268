"""Which thread computes on which stream of a GPU."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
import torch

from segserve.runtime.acceleration import cuda as streams_module
from segserve.runtime.acceleration.cuda import CudaStreams

GPU = torch.device("cuda", 0)


@pytest.fixture
def entered(monkeypatch):
    """The numbers of the streams that were entered, where no GPU is needed to make one."""
    numbers, entered = iter(range(100)), []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _device: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda _device: next(numbers))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext(entered.append(stream)))
    return entered


def test_own_stream_of_a_thread_stays_the_same_and_is_shared_only_by_more_threads_than_streams(
    entered,
):
    streams, everybody = CudaStreams(GPU), threading.Barrier(6, timeout=10)
    found = []

    def use(_):
        everybody.wait()  # so that no thread takes a second turn
        streams.own()
        mine = streams._of_thread.stream
        streams.own()
        found.append((mine, streams._of_thread.stream))

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(use, range(6)))
    assert all(first == second for first, second in found)
    assert sorted(first for first, _ in found) == [0, 0, 1, 1, 2, 3]
    assert sorted(entered) == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 3, 3]
    assert streams_module._STREAMS == 4
