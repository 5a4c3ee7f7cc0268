"""The parallel executor: order, threads, concurrency, and what is tried again alone."""

import threading

import pytest
import torch

from segserve.runtime.cores import ParallelExecutor


@pytest.fixture
def four_threads():
    before = torch.get_num_threads()
    yield ParallelExecutor(4, torch.set_num_threads)
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [0, 1, 2, 9], ids=str)
def test_map_gives_the_results_in_order(four_threads, count):
    assert four_threads.map(lambda item: item * item, range(count)) == [
        item * item for item in range(count)
    ]


@pytest.mark.parametrize(("count", "share"), [(1, 4), (2, 2), (3, 1), (4, 1), (9, 1)], ids=str)
def test_map_shares_the_threads_out(four_threads, count, share):
    assert four_threads.map(lambda _: torch.get_num_threads(), range(count)) == [share] * count
    assert torch.get_num_threads() == 4


def test_map_works_at_once(four_threads):
    everybody = threading.Barrier(
        4, timeout=10
    )  # passed by four who wait at the same time, or broken
    four_threads.map(lambda _: everybody.wait(), range(4))


def test_map_single_item_stays_on_this_thread(four_threads):
    assert four_threads.map(lambda _: threading.get_ident(), [0]) == [threading.get_ident()]


def test_map_on_one_thread_is_one_after_the_other():
    assert (
        ParallelExecutor(1, torch.set_num_threads).map(lambda _: threading.get_ident(), range(3))
        == [threading.get_ident()] * 3
    )


def test_map_error_reaches_the_caller(four_threads):
    with pytest.raises(ZeroDivisionError, match="division"):
        four_threads.map(lambda item: 1 / item, [1, 0])


def test_map_tries_again_one_at_a_time_with_all_threads_after_the_others(four_threads):
    begun = []

    def work(item: int) -> int:
        begun.append((item, torch.get_num_threads(), threading.current_thread()))
        return -1 if item % 2 and len(begun) <= 4 else item

    everybody = threading.Barrier(4, timeout=10)

    def crowded(item: int) -> int:
        everybody.wait() if len(begun) < 4 else None
        return work(item)

    assert four_threads.map(crowded, range(4), again=lambda result: result < 0) == [0, 1, 2, 3]
    assert begun[4:] == [(1, 4, threading.current_thread()), (3, 4, threading.current_thread())]


@pytest.mark.parametrize("count", [1, 3], ids=["a single item", "on one thread"])
def test_map_what_had_nothing_beside_it_is_not_tried_again(four_threads, count):
    tried = []
    parallel = four_threads if count == 1 else ParallelExecutor(1, torch.set_num_threads)
    parallel.map(tried.append, range(count), again=lambda _: True)
    assert tried == list(range(count))
