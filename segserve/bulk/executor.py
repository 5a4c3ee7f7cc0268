"""Runs tasks in several threads, and converts SIGINT and SIGTERM to an exception."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Any, Self, TypeVar

from .errors import InterruptedRunError

Task = TypeVar("Task")
Result = TypeVar("Result")

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Handles SIGINT and SIGTERM within a context, in the main thread.

    A signal is only recorded, because an exception in the middle of a write would do harm. `check`
    raises it; within `immediate`, the signal handler raises it. Later signals are ignored.
    """

    def __init__(self) -> None:
        self._number: int | None = None
        self._is_immediate = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # others cannot handle signals
            self._before = {number: signal.getsignal(number) for number in _SIGNALS}
        self.install()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def install(self) -> None:
        """Sets the handlers. Call it again after a library has set its own."""
        for number in self._before:
            signal.signal(number, self._handle)

    def check(self) -> None:
        """Call this regularly during long work.

        Raises:
            InterruptedRunError: the process has received a signal.
        """
        if self._number is not None:
            raise InterruptedRunError(self._number)

    @contextmanager
    def immediate(self) -> Iterator[None]:
        """A context in which a signal raises `InterruptedRunError` at once."""
        self._is_immediate = True
        try:
            self.check()
            yield
        finally:
            self._is_immediate = False

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self._number is None:
            self._number = number
            if self._is_immediate:
                self.check()


def parallel_results(
    work: Callable[[Task], Result],
    tasks: Iterator[Task],
    workers: int,
    interrupts: Interrupts,
    *,
    awaits_threads: bool = False,
) -> Iterator[tuple[Task, Result | Exception]]:
    """Calls `work` for every task, in `workers` threads. Yields every task with its result, or with
    the exception that it raised, in order of completion.

    At most two tasks per thread are pending, so the number of tasks does not affect memory.

    Args:
        work: must not write or print, so that a task can be dropped when the run ends.
        interrupts: a signal raises `InterruptedRunError`, only between results.
        awaits_threads: at the end, let each thread finish its current task. Python must not exit
            while a thread computes with torch.
    """
    todo: SimpleQueue[Task | None] = SimpleQueue()
    done: SimpleQueue[tuple[Task, Result | Exception]] = SimpleQueue()
    threads = [
        threading.Thread(target=_work_off, args=(work, todo, done), daemon=True)
        for _ in range(workers)
    ]
    for thread in threads:
        thread.start()
    try:
        pending = 0
        while True:
            for task in islice(tasks, 2 * workers - pending):
                todo.put(task)
                pending += 1
            if not pending:
                break
            with interrupts.immediate():
                ended = done.get()
            pending -= 1
            yield ended
        interrupts.check()
    finally:
        with suppress(Empty):
            while True:
                todo.get_nowait()
        for _ in threads:
            todo.put(None)
        for thread in threads if awaits_threads else ():
            thread.join()


def _work_off(
    work: Callable[[Task], Result],
    todo: "SimpleQueue[Task | None]",
    done: "SimpleQueue[tuple[Task, Result | Exception]]",
) -> None:
    while (task := todo.get()) is not None:
        try:
            result: Result | Exception = work(task)
        except Exception as error:  # the consumer of the results handles it
            result = error
        done.put((task, result))
