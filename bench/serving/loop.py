"""What is measured without a server: one caller in a process of its own, with the machine to itself as a server has it.

How many clients there would be makes no difference to it: it is measured along with them all the same, so that a ratio
compares what was measured within seconds.
"""

import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

from .contestant import Opened
from .errors import BenchError
from .figures import Run
from .workload import Workload

Work = Callable[[Path], object]
"""What is done with one image file."""

Prepare = Callable[[Workload], Work]
"""Loads and compiles what the work needs, for all files of the workload."""

_END_S = 5


class LoopContestant:
    def __init__(self, workload: Workload, pipe: Connection) -> None:
        self._workload = workload
        self._pipe = pipe

    def warm_up(self) -> None:
        self._ask(self._workload.warm_up * 2, float("inf"))

    def run(self, clients: int) -> Run:
        return self._ask(self._workload.requests, self._workload.max_s)

    def _ask(self, images: Sequence[Path], max_s: float) -> Run:
        self._pipe.send((images, max_s))
        return _received(self._pipe)


@contextmanager
def open_loop(workload: Workload, *, title: str, prepare: Prepare) -> Iterator[Opened]:
    """A process that is ready to loop; it ends with the context.

    Raises:
        BenchError: it cannot be prepared.
    """
    context = multiprocessing.get_context("spawn")  # PyTorch's threads do not survive a fork
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, prepare, workload), daemon=True)
    began_s = time.perf_counter()
    process.start()
    theirs.close()
    try:
        _received(ours)
        contestant = LoopContestant(workload, ours)
        yield Opened({title: contestant}, process.pid or 0, time.perf_counter() - began_s)
    finally:
        ours.close()  # it ends by itself, unless it is in the middle of something
        process.join(_END_S)
        process.terminate()
        process.join()


def _received(pipe: Connection) -> Run:
    try:
        answer: Run | BenchError = pipe.recv()
    except EOFError as error:
        raise BenchError("the process of the loop has ended") from error
    if isinstance(answer, BenchError):
        raise answer
    return answer


def _serve(pipe: Connection, prepare: Prepare, workload: Workload) -> None:
    """The other process: prepares, then answers each list of images by a run, until nobody asks any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the benchmark gets it as well, and ends this process
    try:
        work = prepare(workload)
        pipe.send(Run((), 1.0))
        while True:
            images, max_s = pipe.recv()
            pipe.send(looped(work, images, max_s))
    except EOFError:
        return
    except Exception as error:  # whatever it is, the benchmark tells it and goes on without this contestant
        pipe.send(BenchError(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"))


def looped(work: Work, images: Sequence[Path], max_s: float) -> Run:
    """One image after the other, none of which begins later than `max_s` seconds after the first."""
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
