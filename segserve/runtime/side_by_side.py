"""Several requests at once in one worker, each with its share of the worker's threads.

Two images on a core each are done sooner than one after the other on both: much of the way from an image to its answer
(decoding, encoding, layers that are too small to be split) keeps but one core busy.
"""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")


class SideBySide:
    """Work on the threads of one worker. The thread that makes it computes with all of them when it works alone."""

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)
        self._threads = threads
        # Twice as many as can compute: the last of a batch end together, where they would leave cores idle one by one.
        self._pool = ThreadPoolExecutor(2 * threads, thread_name_prefix="side-by-side")

    def map(
        self,
        work: Callable[[Item], Result],
        items: Sequence[Item],
        *,
        again: Callable[[Result], bool] = lambda _: False,
    ) -> list[Result]:
        """The results in the order of the items; a single item is worked on right here, with all threads.

        Args:
            again: whether a result tells of too little memory. The others beside it may have held it: such an item is
                worked on once more when they are done, one at a time with nothing beside it.
        """
        if min(len(items), self._threads) < 2:
            return [work(item) for item in items]
        share = max(1, self._threads // len(items))

        def work_with_share(item: Item) -> Result:
            torch.set_num_threads(share)  # PyTorch keeps that number by thread
            return work(item)

        results = list(self._pool.map(work_with_share, items))
        places = [place for place, result in enumerate(results) if again(result)]
        if places:
            told = "%d of %d requests of a batch found no memory beside the others: computed again, one at a time"
            logger.warning(told, len(places), len(items))
        for place in places:
            results[place] = work(items[place])
        return results
