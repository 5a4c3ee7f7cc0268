"""Measures code without a server: one caller in a separate process, which has the whole machine
like a server.

The number of clients does not affect it. It is measured again for every number of clients, so that
a ratio compares measurements of nearly the same time.
"""

import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

from .figures import Run
from .peer import BenchError, Opened
from .workload import Workload

Work = Callable[[Path], object]
"""Processes one image file."""

Prepare = Callable[[Workload], Work]
"""Loads and compiles everything that the work needs for the workload's files."""

_END_S = 5


class LoopPeer:
    def __init__(self, workload: Workload, pipe: Connection) -> None:
        self._workload = workload
        self._pipe = pipe

    def warm_up(self) -> None:
        self._send(self._workload.warm_up * 2, float("inf"))

    def run(self, clients: int) -> Run:
        return self._send(self._workload.requests, self._workload.max_s)

    def _send(self, images: Sequence[Path], max_s: float) -> Run:
        self._pipe.send((images, max_s))
        return _received(self._pipe)


@contextmanager
def open_loop(workload: Workload, *, title: str, prepare: Prepare) -> Iterator[Opened]:
    """Starts a process that is ready to loop. It ends with the context.

    Raises:
        BenchError: the preparation failed.
    """
    context = multiprocessing.get_context("spawn")  # PyTorch's threads do not work after a fork
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, prepare, workload), daemon=True)
    began_s = time.perf_counter()
    process.start()
    theirs.close()
    try:
        _received(ours)
        peer = LoopPeer(workload, ours)
        yield Opened({title: peer}, process.pid or 0, time.perf_counter() - began_s)
    finally:
        ours.close()  # the process then ends, unless it is busy
        process.join(_END_S)
        process.terminate()
        process.join()


def _received(pipe: Connection) -> Run:
    try:
        response: Run | BenchError = pipe.recv()
    except EOFError as error:
        raise BenchError("the process of the loop has ended") from error
    if isinstance(response, BenchError):
        raise response
    return response


def _serve(pipe: Connection, prepare: Prepare, workload: Workload) -> None:
    """The separate process: prepares, then processes lists of images and returns each run, until
    the pipe closes.
    """
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # the benchmark receives it too, and ends this process
    try:
        work = prepare(workload)
        pipe.send(Run((), 1.0))
        while True:
            images, max_s = pipe.recv()
            pipe.send(looped(work, images, max_s))
    except EOFError:
        return
    except Exception as error:  # the benchmark reports any error and continues without this peer
        pipe.send(BenchError(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"))


def looped(work: Work, images: Sequence[Path], max_s: float) -> Run:
    """Processes one image at a time. No image starts later than `max_s` seconds after the first."""
    latencies_s: list[float] = []
    began_s = ended_s = time.perf_counter()
    for image in images:
        if ended_s - began_s >= max_s:
            break
        work(image)
        now_s = time.perf_counter()
        latencies_s.append(now_s - ended_s)
        ended_s = now_s
    return Run(tuple(latencies_s), ended_s - began_s)
