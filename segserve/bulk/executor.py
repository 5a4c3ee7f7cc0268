"""Runs tasks in several threads, and converts SIGINT and SIGTERM to an exception."""

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Any, Generic, Self, TypeVar

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
        self._before = {number: signal.getsignal(number) for number in _SIGNALS}
        self.install()
        return self

    def __exit__(self, *_: object) -> None:
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def install(self) -> None:
        """Sets the handlers. Call it again after a library has set its own."""
        if threading.current_thread() is threading.main_thread():  # others cannot handle signals
            for number in _SIGNALS:
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


class Executor(Generic[Task, Result]):
    """Calls `work` for every task, in `workers` threads.

    `work` must not write or print, so that a task can be dropped when the run ends.

    Args:
        awaits_threads: at the end, let each thread finish its current task. Python must not exit
            while a thread computes with torch.
    """

    def __init__(
        self, work: Callable[[Task], Result], workers: int, *, awaits_threads: bool = False
    ) -> None:
        self.interrupts = Interrupts()
        self._work = work
        self._awaits_threads = awaits_threads
        self._todo: SimpleQueue[Task | None] = SimpleQueue()
        self._done: SimpleQueue[tuple[Task, Result | Exception]] = SimpleQueue()
        self._threads = [threading.Thread(target=self._serve, daemon=True) for _ in range(workers)]

    def results(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Result | Exception]]:
        """Yields every task with its result, or with the exception that it raised, in order of
        completion. Can be called once.

        At most two tasks per thread are pending, so the number of tasks does not affect memory.

        Raises:
            InterruptedRunError: the process received SIGINT or SIGTERM. Raised only between
                results.
        """
        try:
            for thread in self._threads:
                thread.start()
            with self.interrupts:
                yield from self._results(iter(tasks))
        finally:
            self._end()

    def _results(self, tasks: Iterator[Task]) -> Iterator[tuple[Task, Result | Exception]]:
        pending = sum(map(self._put, islice(tasks, 2 * len(self._threads))))
        while pending:
            with self.interrupts.immediate():
                ended = self._done.get()
            yield ended
            pending += sum(map(self._put, islice(tasks, 1))) - 1
        self.interrupts.check()

    def _put(self, task: Task) -> int:
        self._todo.put(task)
        return 1

    def _serve(self) -> None:
        while (task := self._todo.get()) is not None:
            try:
                result: Result | Exception = self._work(task)
            except Exception as error:  # the consumer of the results handles it
                result = error
            self._done.put((task, result))

    def _end(self) -> None:
        with suppress(Empty):
            while True:
                self._todo.get_nowait()
        for _ in self._threads:
            self._todo.put(None)
        if self._awaits_threads:
            for thread in self._threads:
                thread.join()
