"""Measures code without a server: one caller in a separate process, for any number of clients.

It is measured again for every number, so that a ratio compares measurements of nearly one time.
"""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from .figures import Run
from .peer import BenchError, Opened, Workload

Work = Callable[[Path], object]
"""Processes one image file."""

Prepare = Callable[[Workload], Work]
"""Loads and compiles everything that the work needs for the workload's files."""

Result = TypeVar("Result")

_prepared: list[Work] = []
"""The work of this process, if it is the one of a loop."""


@dataclass(frozen=True)
class LoopPeer:
    workload: Workload
    pool: ProcessPoolExecutor

    def warm_up(self) -> None:
        _result(self.pool, _loop, self.workload.warm_up * 2, float("inf"))

    def run(self, clients: int) -> Run:
        return _result(self.pool, _loop, self.workload.requests, self.workload.max_s)


@contextmanager
def open_loop(workload: Workload, *, title: str, prepare: Prepare) -> Iterator[Opened]:
    """Starts a process that is ready to loop. Raises BenchError if the preparation fails."""
    began_s = time.perf_counter()
    with ProcessPoolExecutor(
        1,
        multiprocessing.get_context("spawn"),  # PyTorch's threads do not work after a fork
        initializer=signal.signal,
        initargs=(signal.SIGINT, signal.SIG_IGN),  # the benchmark receives it, and ends the process
    ) as pool:
        pid = pool.submit(os.getpid).result()
        try:
            _result(pool, _prepare, prepare, workload)
            yield Opened({title: LoopPeer(workload, pool)}, pid, time.perf_counter() - began_s)
        finally:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)  # it may be busy


def _result(
    pool: ProcessPoolExecutor, function: Callable[..., Result], *arguments: object
) -> Result:
    try:
        return pool.submit(function, *arguments).result()
    except Exception as error:  # the benchmark reports any error and continues without this peer
        reason = " ".join(str(error).split())[:300]
        raise BenchError(f"{type(error).__name__}: {reason}") from error


def _prepare(prepare: Prepare, workload: Workload) -> None:
    _prepared.append(prepare(workload))


def _loop(images: Sequence[Path], max_s: float) -> Run:
    return looped(_prepared[0], images, max_s)


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
