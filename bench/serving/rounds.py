"""The order of the measurements. Every round measures all peers, so that a drift affects all
equally.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping

from .figures import Key, Round, Run
from .peer import Peer

Progress = Callable[[int, Key, Run], None]


def measured_rounds(
    peers: Mapping[str, Peer], clients: Iterable[int], rounds: int, progress: Progress
) -> Iterator[Round]:
    """Yields every complete round. Calls `progress` after every run.

    Every second round has the reverse order, so that no peer is always first on a machine
    that slows down.
    """
    order = [(name, count) for count in clients for name in peers]
    for number in range(rounds):
        runs = {}
        for key in reversed(order) if number % 2 else order:
            name, count = key
            runs[key] = peers[name].run(count)
            progress(number, key, runs[key])
        yield {key: runs[key] for key in order}
