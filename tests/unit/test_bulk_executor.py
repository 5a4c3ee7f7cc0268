"""Work in several threads, and how it ends."""

import os
import signal
import threading
import time

import pytest

from segserve.bulk.run import InterruptedRunError, Interrupts, parallel_results

WORKERS = 3


def results_of(work, tasks, **options):
    with Interrupts() as interrupts:
        yield from parallel_results(work, iter(tasks), WORKERS, interrupts, **options)


def test_results_hold_every_task_and_its_result():
    results = results_of(lambda number: number**2, range(100))
    assert dict(results) == {number: number**2 for number in range(100)}


def test_results_hold_the_exception_of_a_task():
    [(_, error)] = results_of(lambda number: 1 // number, [0])
    assert isinstance(error, ZeroDivisionError)


def test_results_of_no_tasks_are_none():
    assert list(results_of(str, [])) == []


def test_work_runs_in_so_many_threads_and_no_more():
    running, most, lock = 0, 0, threading.Lock()
    all_at_work = threading.Barrier(WORKERS)

    def work(_):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        all_at_work.wait(timeout=10)
        with lock:
            running -= 1

    results = list(results_of(work, range(WORKERS * 4)))
    assert [result for _, result in results] == [None] * WORKERS * 4
    assert most == WORKERS


def test_tasks_are_consumed_only_when_needed():
    taken = 0

    def tasks():
        nonlocal taken
        for number in range(1000):
            taken += 1
            yield number

    for finished, _ in enumerate(results_of(str, tasks()), start=1):
        assert taken <= finished + 2 * WORKERS


def test_threads_end_with_the_results():
    others = set(threading.enumerate())
    results = results_of(str, range(100))
    next(results)
    own = set(threading.enumerate()) - others
    assert len(own) == WORKERS
    results.close()
    for thread in own:
        thread.join(timeout=10)
    assert not any(thread.is_alive() for thread in own)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=str)
def test_signal_ends_the_results_while_work_goes_on(number):
    before = {other: signal.getsignal(other) for other in (signal.SIGINT, signal.SIGTERM)}
    release = threading.Event()
    results = results_of(lambda _: release.wait(30), range(10))
    sender = threading.Timer(0.1, os.kill, (os.getpid(), number))
    sender.start()
    began_s = time.monotonic()
    with pytest.raises(InterruptedRunError, match="interrupted") as caught:
        next(results)
    release.set()
    assert caught.value.exit_status == 128 + number
    assert time.monotonic() - began_s < 5
    assert signal.getsignal(number) is signal.SIG_IGN  # until the process ends
    for other, handler in before.items():
        signal.signal(other, handler)


def test_threads_that_are_awaited_finish_what_they_are_at():
    finished = []

    def work(number):
        time.sleep(0.2)
        finished.append(number)

    others = set(threading.enumerate())
    results = results_of(work, range(100), awaits_threads=True)
    next(results)
    own = set(threading.enumerate()) - others
    assert len(own) == WORKERS
    results.close()
    assert not any(thread.is_alive() for thread in own)
    assert len(finished) <= 2 * WORKERS


def test_signal_raises_only_at_the_next_result():
    """It arrives within the caller's code, which runs on to its next step."""
    before = {other: signal.getsignal(other) for other in (signal.SIGINT, signal.SIGTERM)}
    results = results_of(str, range(10))
    next(results)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0)  # a handler that raises would raise here
    with pytest.raises(InterruptedRunError, match="interrupted"):
        next(results)
    for other, handler in before.items():
        signal.signal(other, handler)
