"""Computes the figures: each is the median of the rounds, and each ratio is the median of the
rounds' ratios.

So a drift of the machine's speed, or a short load, has little influence on them.
"""

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

OURS = "ours, png"
DENSE = "ours, dense"
LIMIT = "limit"
PLAIN_LOOP = "plain loop"


@dataclass(frozen=True)
class Run:
    """The result of one peer in one round.

    Attributes:
        latencies_s: latency of every successful request, in seconds.
        wall_s: seconds from the first request to the last response.
        failures: number of requests with an error response or without a response.
        reason: reason of the first failure.
    """

    latencies_s: tuple[float, ...]
    wall_s: float
    failures: int = 0
    reason: str = ""

    @property
    def images_a_second(self) -> float:
        return len(self.latencies_s) / self.wall_s

    @property
    def median_ms(self) -> float:
        """The median latency; NaN without a successful request."""
        return 1000 * statistics.median(self.latencies_s) if self.latencies_s else math.nan

    @property
    def p99_ms(self) -> float:
        """The 99th percentile of the latency (nearest rank); NaN without a successful request."""
        if not self.latencies_s:
            return math.nan
        return 1000 * sorted(self.latencies_s)[math.ceil(0.99 * len(self.latencies_s)) - 1]


Key = tuple[str, int]
"""A peer and the number of its clients."""

Round = Mapping[Key, Run]
Figure = Callable[[Run], float]


@dataclass(frozen=True)
class Row:
    """One peer with one number of clients.

    Attributes:
        ours_to_it: ratio of the throughput of `OURS` to this peer's throughput. None if one
            of the two was not measured or had no successful request.
        completed: number of successful requests in all rounds.
        failures: number of failed requests in all rounds.
        reason: reason of the first failure.
    """

    peer: str
    clients: int
    images_a_second: float
    median_ms: float
    p99_ms: float
    ours_to_it: float | None
    responded: int
    failures: int
    reason: str


def rows(rounds: Sequence[Round]) -> list[Row]:
    """One row per measurement, in the order of the measurements."""
    return [_row(rounds, key) for key in rounds[0]]


def _row(rounds: Sequence[Round], key: Key) -> Row:
    peer, clients = key
    runs = [each[key] for each in rounds]
    images_a_second, median_ms, p99_ms = (
        statistics.median(figure(run) for run in runs)
        for figure in (throughput, median_ms_of, p99_ms_of)
    )
    return Row(
        peer,
        clients,
        images_a_second,
        median_ms,
        p99_ms,
        ours_to_it=ratio(rounds, throughput, (OURS, clients), key),
        responded=sum(len(run.latencies_s) for run in runs),
        failures=sum(run.failures for run in runs),
        reason=next((run.reason for run in runs if run.reason), ""),
    )


def throughput(run: Run) -> float:
    return run.images_a_second


def median_ms_of(run: Run) -> float:
    return run.median_ms


def p99_ms_of(run: Run) -> float:
    return run.p99_ms


def ratio(
    rounds: Sequence[Round], figure: Figure, of: Key, to: Key, *, to_figure: Figure | None = None
) -> float | None:
    """The median of the rounds' ratios. None if one of the two is missing or has no success in any
    round.
    """
    if any(key not in each or not each[key].latencies_s for each in rounds for key in (of, to)):
        return None
    return statistics.median(figure(each[of]) / (to_figure or figure)(each[to]) for each in rounds)


def headlines(rounds: Sequence[Round]) -> Iterator[tuple[str, float]]:
    """The most important ratios with their titles. Ratios that were not measured are omitted."""
    found = {
        "one client: median latency, ours to the limit": ratio(
            rounds, median_ms_of, (OURS, 1), (LIMIT, 1)
        ),
        "one client: median latency, ours to the plain loop": ratio(
            rounds, median_ms_of, (OURS, 1), (PLAIN_LOOP, 1)
        ),
        "8 clients: images a second, ours to the limit": ratio(
            rounds, throughput, (OURS, 8), (LIMIT, 8)
        ),
        "8 clients: images a second, ours to the plain loop": ratio(
            rounds, throughput, (OURS, 8), (PLAIN_LOOP, 8)
        ),
        "8 clients: p99 of ours to 8 x the limit's median": _p99_to_limit(rounds, clients=8),
        "8 clients: images a second, dense to png": ratio(
            rounds, throughput, (DENSE, 8), (OURS, 8)
        ),
        "images a second of ours, 32 clients to 8": ratio(
            rounds, throughput, (OURS, 32), (OURS, 8)
        ),
    }
    return ((title, value) for title, value in found.items() if value is not None)


def _p99_to_limit(rounds: Sequence[Round], *, clients: int) -> float | None:
    """With n clients in a queue, each waits for n images. So a server's minimum is n times the
    limit's latency.
    """
    key, limit = (OURS, clients), (LIMIT, clients)
    return ratio(rounds, p99_ms_of, key, limit, to_figure=lambda run: clients * run.median_ms)
