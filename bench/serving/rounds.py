"""The order of the measurements. Every round measures all contestants, so that a drift affects all
equally.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping

from .contestant import Contestant
from .figures import Key, Round, Run

Progress = Callable[[int, Key, Run], None]


def measured_rounds(
    contestants: Mapping[str, Contestant], clients: Iterable[int], rounds: int, progress: Progress
) -> Iterator[Round]:
    """Yields every complete round. Calls `progress` after every run.

    Every second round has the reverse order, so that no contestant is always first on a machine
    that slows down.
    """
    order = [(name, count) for count in clients for name in contestants]
    for number in range(rounds):
        runs = {}
        for key in reversed(order) if number % 2 else order:
            name, count = key
            runs[key] = contestants[name].run(count)
            progress(number, key, runs[key])
        yield {key: runs[key] for key in order}
