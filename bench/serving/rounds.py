"""Who is measured when: everybody in every round, so that a machine whose speed drifts favours nobody."""

from collections.abc import Callable, Iterable, Iterator, Mapping

from .contestant import Contestant
from .figures import Key, Round, Run

Progress = Callable[[int, Key, Run], None]


def measured_rounds(
    contestants: Mapping[str, Contestant], clients: Iterable[int], rounds: int, progress: Progress
) -> Iterator[Round]:
    """Yields one round after the other; `progress` hears of every run at once.

    Every second round goes backwards: in a machine that gets slower and slower, nobody is always first.
    """
    order = [(name, count) for count in clients for name in contestants]
    for number in range(rounds):
        runs = {}
        for key in reversed(order) if number % 2 else order:
            name, count = key
            runs[key] = contestants[name].run(count)
            progress(number, key, runs[key])
        yield {key: runs[key] for key in order}
