"""Runs tasks in several threads and yields the results in this thread. Signals take effect only
between results.
"""

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Generic, TypeVar

from .errors import InterruptedRunError

Task = TypeVar("Task")
Result = TypeVar("Result")

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_WAKE = None


@dataclass
class Flight(Generic[Task, Result]):
    """Calls `work` for every task, in `workers` threads.

    The threads must not write or print. So when a run ends, their current tasks can be dropped.
    Python must not exit
    while a thread computes with torch: set `awaits_threads` to let each thread finish its current
        task.
    """

    work: Callable[[Task], Result]
    workers: int
    awaits_threads: bool = False
    _todo: SimpleQueue[Task | None] = field(default_factory=SimpleQueue, init=False)
    _done: SimpleQueue[tuple[Task, Result | Exception] | None] = field(
        default_factory=SimpleQueue, init=False
    )
    _signal_number: int | None = field(default=None, init=False)
    _threads: list[threading.Thread] = field(default_factory=list, init=False)

    def results(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Result | Exception]]:
        """Yields every task with its result, or with the exception that it raised, in order of
        completion.

        At most two tasks per worker are pending, so the number of tasks does not affect memory.

        Raises:
            InterruptedRunError: the process received SIGINT or SIGTERM.
        """
        try:
            self._start()
            with self._signals_noted():
                yield from self._results(iter(tasks))
        finally:
            self._end()

    def _results(self, tasks: Iterator[Task]) -> Iterator[tuple[Task, Result | Exception]]:
        under_way = sum(map(self._put, islice(tasks, 2 * self.workers)))
        while under_way:
            ended = self._done.get()
            self.check_signals()
            if ended is not _WAKE:
                yield ended
                under_way += sum(map(self._put, islice(tasks, 1))) - 1
        self.check_signals()

    def check_signals(self) -> None:
        """Call this during long work that waits for no result.

        Raises:
            InterruptedRunError: the process received SIGINT or SIGTERM.
        """
        if self._signal_number is not None:
            raise InterruptedRunError(self._signal_number)

    def _start(self) -> None:
        self._threads = [
            threading.Thread(target=self._serve, daemon=True) for _ in range(self.workers)
        ]
        for thread in self._threads:
            thread.start()

    def _put(self, task: Task) -> int:
        self._todo.put(task)
        return 1

    def _serve(self) -> None:
        while (task := self._todo.get()) is not None:
            try:
                result: Result | Exception = self.work(task)
            except Exception as error:  # the consumer of the results handles it
                result = error
            self._done.put((task, result))

    def _end(self) -> None:
        with suppress(Empty):
            while True:
                self._todo.get_nowait()
        for _ in self._threads:
            self._todo.put(None)
        if self.awaits_threads:
            for thread in self._threads:
                thread.join()

    @contextmanager
    def _signals_noted(self) -> Iterator[None]:
        """Records signals, because an exception could occur anywhere. `SimpleQueue.put` is safe in
        a signal handler.
        """

        def note(number: int, _: FrameType | None) -> None:
            self._signal_number = number
            self._done.put(_WAKE)

        if (
            threading.current_thread() is not threading.main_thread()
        ):  # only that thread can handle signals
            yield
            return
        before = {number: signal.signal(number, note) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
