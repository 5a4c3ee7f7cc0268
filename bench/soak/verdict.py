"""Decides from the samples and the requests' outcomes whether a server was stable."""

import itertools
import math
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from bench.serving.figures import p99_s

from .load import Outcome

_WARM_UP = 0.25  # of the run: the queue and the caches fill, and Java compiles
_MOST_GROWTH = 0.05
_P99_SPREAD = 1.5
_DOCUMENTED = frozenset({400, 413, 415, 422})  # the statuses for invalid requests


class Sample(NamedTuple):
    """The resources of all of the server's processes together, seconds after the start. Shared
    pages count once per process.
    """

    at_s: float
    memory_bytes: int
    descriptors: int
    threads: int


class Finding(NamedTuple):
    """One result about the server as a sentence, and whether it meets the limit."""

    name: str
    reported: str
    holds: bool


def findings(
    samples: Sequence[Sample], outcomes: Sequence[Outcome], seconds: float
) -> list[Finding]:
    """All findings about a run of so many seconds."""
    kept = [sample for sample in samples if sample.at_s >= _WARM_UP * seconds]
    warm = [outcome for outcome in outcomes if outcome.sent_s >= _WARM_UP * seconds]
    return [
        _memory([sample.memory_bytes for sample in kept]),
        _count("descriptors", [sample.descriptors for sample in kept]),
        _count("threads", [sample.threads for sample in kept]),
        _slowest(warm, part_s=min(60.0, seconds / 10)),
        _queue(warm),
        _rejections(outcomes),
    ]


def growth(values: Sequence[float]) -> float:
    """The growth of the median from the first third to the last third: 0.05 is +5 %. NaN for fewer
    than 3 values.
    """
    third = len(values) // 3
    if not third:
        return math.nan
    return statistics.median(values[-third:]) / statistics.median(values[:third]) - 1


def p99_by_part(outcomes: Sequence[Outcome], part_s: float) -> list[float]:
    """The 99th percentile of successful requests in seconds, for each part of `part_s` seconds by
    time of sending.
    """
    responded = sorted(outcome for outcome in outcomes if outcome.status == 200)
    parts = itertools.groupby(responded, key=lambda outcome: int(outcome.sent_s // part_s))
    return [p99_s([outcome.latency_s for outcome in part]) for _, part in parts]


def most_open(outcomes: Sequence[Outcome]) -> int:
    """The maximum number of concurrent requests."""
    changes = [(outcome.sent_s, 1) for outcome in outcomes]
    changes += [(outcome.sent_s + outcome.latency_s, -1) for outcome in outcomes]
    return max(itertools.accumulate(change for _, change in sorted(changes)), default=0)


def _memory(used_bytes: Sequence[int]) -> Finding:
    grown, peak = growth(used_bytes), max(used_bytes, default=0)
    reported = f"{grown:+.1%} from the first third to the last, {peak / 1e9:.2f} GB at the most"
    return Finding("memory", reported, abs(grown) <= _MOST_GROWTH)


def _count(name: str, counts: Sequence[int]) -> Finding:
    grown = growth(counts)
    reported = f"{grown:+.1%}, from {min(counts, default=0)} to {max(counts, default=0)}"
    return Finding(name, reported, grown <= _MOST_GROWTH)


def _slowest(outcomes: Sequence[Outcome], part_s: float) -> Finding:
    parts = p99_by_part(outcomes, part_s)
    if not parts:
        return Finding("p99", "no request was completed", holds=False)
    median_s, worst_s = statistics.median(parts), max(parts)
    where = f"at the median of {len(parts)} parts of {part_s:.0f} s"
    reported = f"{median_s:.1f} s {where}, {worst_s:.1f} s in the worst"
    return Finding("p99", reported, worst_s <= _P99_SPREAD * median_s)


def _queue(outcomes: Sequence[Outcome]) -> Finding:
    """The queue is bounded if the second half of the run has no more concurrent requests than the
    first half.
    """
    half_s = statistics.median([outcome.sent_s for outcome in outcomes] or [0.0])
    first = most_open([outcome for outcome in outcomes if outcome.sent_s < half_s])
    last = most_open([outcome for outcome in outcomes if outcome.sent_s >= half_s])
    reported = f"{first} requests in flight at most in the first half, {last} in the second"
    return Finding("queue", reported, last <= 1.1 * first + 1)


def _rejections(outcomes: Sequence[Outcome]) -> Finding:
    """Valid requests must get 200, or 503 with `Retry-After`. Invalid ones must get a documented
    status or that 503.
    """
    counts = Counter(outcome.status for outcome in outcomes)
    wrong = [outcome for outcome in outcomes if not _expected(outcome)]
    listed = ", ".join(f"{counts[status]} x {status or 'no response'}" for status in sorted(counts))
    reported = f"{listed}; {len(wrong)} of them other than documented"
    return Finding("responses", reported, not wrong and counts[200] > 0)


def _expected(outcome: Outcome) -> bool:
    if outcome.status == 503:
        return outcome.says_when
    return outcome.status == 200 if outcome.good else outcome.status in _DOCUMENTED
