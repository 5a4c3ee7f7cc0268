"""Replaces TorchServe's metrics cache for a handler: collects what the handler reports, for the
gateway to count.

Nothing here imports `segserve.runtime`, for the reason given in `loading`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Observation(NamedTuple):
    """One value of a metric, with the values of its labels in the declared order."""

    name: str
    value: float
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Sink:
    """A metric with the methods of `ts.metrics.caching_metric.CachingMetric`. A handler reports
    values to it.
    """

    name: str
    dimension_names: Sequence[str]
    observations: list[Observation]

    def add_or_update(self, value: float, dimension_values: Sequence[str]) -> None:
        self.observations.append(Observation(self.name, value, tuple(dimension_values)))


class CollectedMetrics:
    """The metrics of one replica.

    Args:
        declared: by the name of each metric that the gateway knows, the names of its labels.
    """

    def __init__(self, declared: Mapping[str, Sequence[str]]) -> None:
        self._observations: list[Observation] = []
        sinks = {name: Sink(name, labels, self._observations) for name, labels in declared.items()}
        self.cache: Mapping[object, Mapping[str, Sink]] = {"declared": sinks}

    def drain(self) -> tuple[Observation, ...]:
        """The values that were reported since the last call."""
        taken = tuple(self._observations)
        self._observations.clear()
        return taken
