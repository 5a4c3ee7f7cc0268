"""Parallel executor: one worker computes several requests at once, each with its share of the
worker's threads.

Two images on one core each finish sooner than one after the other on two cores. The reason:
decoding, encoding and small layers use only one core.
"""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")


class ParallelExecutor:
    """Runs work on the threads of one worker. The thread that creates it uses all of them when it
    works alone.

    Args:
        threads: those of the worker.
        use_threads: sets how many of them compute for the calling thread.
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
        """Applies `work` to the items. Returns the results in the order of the items.

        A single item runs in the calling thread, with all threads.

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
            reported = (
                "%d of %d requests of a batch found no memory beside the others: computed again, "
                "one at a time"
            )
            logger.warning(reported, len(places), len(items))
        for place in places:
            results[place] = work(items[place])
        return results
