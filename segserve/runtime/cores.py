"""The CPU cores that this process may use, and the threads that share them."""

import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

_CGROUP = Path("/sys/fs/cgroup")


def bounded_spinning(environment: Mapping[str, str]) -> dict[str, str]:
    """The variable to add to the environment of a process that computes, before it imports torch;
    none if the environment says itself how threads wait.

    OpenMP's threads wait for each other many times per image. By default they spin for long: while
    another process has the core of one thread, the others waste theirs. Threads that sleep at once
    lose as much when the machine is quiet. `python -m bench.neighbour` compares them.
    """
    is_set = "OMP_WAIT_POLICY" in environment or "GOMP_SPINCOUNT" in environment
    return {} if is_set else {"GOMP_SPINCOUNT": "2000"}


def available_cores(cgroup: Path = _CGROUP) -> int:
    """The cores that the scheduler may use, at most the container's CPU quota, rounded up."""
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    quota = _quota(cgroup)
    return min(cores, math.ceil(quota)) if quota else cores


def _quota(cgroup: Path) -> float | None:
    """The container's CPU quota in cores, in control groups of version 2 or 1; None without one."""
    for names in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):
        with suppress(OSError, ValueError):  # a file is missing, or holds "max"
            texts = [(cgroup / name).read_text(encoding="ascii") for name in names]
            quota, period = map(int, " ".join(texts).split())
            if quota > 0:
                return quota / period
    return None


class ParallelExecutor:
    """Computes several requests at once, each with its share of a worker's threads. The thread that
    creates it uses all of them.

    Two images on one core each finish sooner than one after the other on two cores, because
    decoding, encoding and small layers use only one core. `use_threads` sets how many threads
    compute for the calling thread.
    """

    def __init__(self, threads: int, use_threads: Callable[[int], None]) -> None:
        use_threads(threads)
        self._threads = threads
        self._use_threads = use_threads
        # Twice as many threads as can compute: the last items of a batch then end together, and no
        # core becomes idle early.
        self._pool = ThreadPoolExecutor(2 * threads, thread_name_prefix="parallel")

    def map(
        self,
        work: Callable[[Item], Result],
        items: Sequence[Item],
        *,
        again: Callable[[Result], bool] = lambda _: False,
    ) -> list[Result]:
        """Applies `work` to the items, to a single one in the calling thread. Returns the results
        in order.

        Args:
            again: whether a result reports too little memory. The other items may have used that
                memory. So such an item runs again when the others are done, one at a time.
        """
        if min(len(items), self._threads) < 2:
            return [work(item) for item in items]
        share = max(1, self._threads // len(items))

        def work_with_share(item: Item) -> Result:
            self._use_threads(share)
            return work(item)

        results = list(self._pool.map(work_with_share, items))
        places = [place for place, result in enumerate(results) if again(result)]
        if places:
            logger.warning(
                "%d of %d requests of a batch found no memory beside the others: computed again, "
                "one at a time",
                len(places),
                len(items),
            )
        for place in places:
            results[place] = work(items[place])
        return results
