"""The figures: medians of the rounds, and of the rounds' ratios, on which a drift of the machine's
speed or a short load has little influence.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

OURS = "ours, png"
DENSE = "ours, dense"
LIMIT = "limit"
PLAIN_LOOP = "plain loop"


@dataclass(frozen=True)
class Run:
    """One peer in one round: latencies of the successful requests, the time from the first request
    to the last response, and the number of failures, with the reason of the first.
    """

    latencies_s: tuple[float, ...]
    wall_s: float
    failures: int = 0
    reason: str = ""

    def images_a_second(self) -> float:
        return len(self.latencies_s) / self.wall_s

    def median_ms(self) -> float:
        """The median latency; NaN without a successful request."""
        return 1000 * statistics.median(self.latencies_s) if self.latencies_s else math.nan

    def p99_ms(self) -> float:
        """The 99th percentile of the latency; NaN without a successful request."""
        return 1000 * p99_s(self.latencies_s) if self.latencies_s else math.nan


def p99_s(latencies_s: Sequence[float]) -> float:
    """The 99th percentile of the latencies (nearest rank)."""
    return sorted(latencies_s)[math.ceil(0.99 * len(latencies_s)) - 1]


Key = tuple[str, int]
"""A peer and the number of its clients."""

Round = Mapping[Key, Run]
Figure = Callable[[Run], float]


@dataclass(frozen=True)
class Row:
    """One peer with one number of clients, over all rounds.

    `ours_to_it` is the ratio of the throughput of `OURS` to this peer's; NaN as in `ratio`.
    """

    peer: str
    clients: int
    images_a_second: float
    median_ms: float
    p99_ms: float
    ours_to_it: float
    responded: int
    failures: int
    reason: str


def rows(rounds: Sequence[Round]) -> list[Row]:
    """One row per measurement, in the order of the measurements."""
    return [_row(rounds, key) for key in rounds[0]]


def _row(rounds: Sequence[Round], key: Key) -> Row:
    peer, clients = key
    runs = [each[key] for each in rounds]
    return Row(
        peer,
        clients,
        images_a_second=statistics.median(run.images_a_second() for run in runs),
        median_ms=statistics.median(run.median_ms() for run in runs),
        p99_ms=statistics.median(run.p99_ms() for run in runs),
        ours_to_it=ratio(rounds, Run.images_a_second, (OURS, clients), key),
        responded=sum(len(run.latencies_s) for run in runs),
        failures=sum(run.failures for run in runs),
        reason=next((run.reason for run in runs if run.reason), ""),
    )


def ratio(
    rounds: Sequence[Round], figure: Figure, of: Key, to: Key, *, to_figure: Figure | None = None
) -> float:
    """The median of the rounds' ratios; NaN if one of the two is missing or without a success in
    any round.
    """
    if any(key not in each or not each[key].latencies_s for each in rounds for key in (of, to)):
        return math.nan
    return statistics.median(figure(each[of]) / (to_figure or figure)(each[to]) for each in rounds)


def headlines(rounds: Sequence[Round]) -> dict[str, float]:
    """The most important ratios by their titles. Ratios that were not measured are omitted."""
    latency = partial(ratio, rounds, Run.median_ms)
    throughput = partial(ratio, rounds, Run.images_a_second)
    found = {
        "one client: median latency, ours to the limit": latency((OURS, 1), (LIMIT, 1)),
        "one client: median latency, ours to the plain loop": latency((OURS, 1), (PLAIN_LOOP, 1)),
        "8 clients: images a second, ours to the limit": throughput((OURS, 8), (LIMIT, 8)),
        "8 clients: images a second, ours to the plain loop": throughput(
            (OURS, 8), (PLAIN_LOOP, 8)
        ),
        # With 8 clients in a queue, each waits for 8 images, so this is a server's minimum.
        "8 clients: p99 of ours to 8 x the limit's median": ratio(
            rounds, Run.p99_ms, (OURS, 8), (LIMIT, 8), to_figure=lambda run: 8 * run.median_ms()
        ),
        "8 clients: images a second, dense to png": throughput((DENSE, 8), (OURS, 8)),
        "images a second of ours, 32 clients to 8": throughput((OURS, 32), (OURS, 8)),
    }
    return {title: value for title, value in found.items() if not math.isnan(value)}
