"""Measures the time that one request spends in each stage."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import NamedTuple


class Interval(NamedTuple):
    """A time interval of one stage, in seconds of `time.perf_counter`."""

    stage: str
    began_s: float
    ended_s: float


@dataclass
class Timings:
    """The time intervals of a request's stages, in order, and a description of a stage where there
    is one.
    """

    intervals: list[Interval] = field(default_factory=list)
    descriptions: dict[str, str] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measures the time inside the context. If the last interval is of the same stage, it is
        extended.
        """
        began_s = perf_counter()
        if self.intervals and self.intervals[-1].stage == name:
            began_s = self.intervals.pop().began_s
        try:
            yield
        finally:
            self.intervals.append(Interval(name, began_s, perf_counter()))

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by stage, in the order in which the stages began."""
        totals: dict[str, float] = {}
        for stage, began_s, ended_s in self.intervals:
            totals[stage] = totals.get(stage, 0.0) + ended_s - began_s
        return totals
