"""Work in several threads, its results in this one; a request to stop arrives between two results, never within one."""

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
    """Calls `work` with one task after the other, at most `workers` at once.

    The threads neither write nor print: what they are at when a run ends can be dropped where it is. Not so where they
    compute with torch, in which Python must not end: `awaits_threads` lets each finish the task that it is at.
    """

    work: Callable[[Task], Result]
    workers: int
    awaits_threads: bool = False
    _todo: SimpleQueue[Task | None] = field(default_factory=SimpleQueue, init=False)
    _done: SimpleQueue[tuple[Task, Result | Exception] | None] = field(default_factory=SimpleQueue, init=False)
    _signal_number: int | None = field(default=None, init=False)
    _threads: list[threading.Thread] = field(default_factory=list, init=False)

    def results(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Result | Exception]]:
        """Every task with its result, or with the exception that it met, in the order in which they end.

        Tasks are taken as they are needed, two a worker ahead, so that memory does not grow with their number.

        Raises:
            InterruptedRunError: SIGINT or SIGTERM arrived.
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
        """For a long stretch in which nothing is waited for.

        Raises:
            InterruptedRunError: SIGINT or SIGTERM has arrived.
        """
        if self._signal_number is not None:
            raise InterruptedRunError(self._signal_number)

    def _start(self) -> None:
        self._threads = [threading.Thread(target=self._serve, daemon=True) for _ in range(self.workers)]
        for thread in self._threads:
            thread.start()

    def _put(self, task: Task) -> int:
        self._todo.put(task)
        return 1

    def _serve(self) -> None:
        while (task := self._todo.get()) is not None:
            try:
                result: Result | Exception = self.work(task)
            except Exception as error:  # told by whoever takes the results
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
        """In place of an exception that could strike anywhere. `SimpleQueue.put` is safe within a signal handler."""

        def note(number: int, _: FrameType | None) -> None:
            self._signal_number = number
            self._done.put(_WAKE)

        if threading.current_thread() is not threading.main_thread():  # only there can signals be handled
            yield
            return
        before = {number: signal.signal(number, note) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
