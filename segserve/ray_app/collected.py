"""What stands for TorchServe's metrics cache in front of a handler: takes what it tells, for the door to count.

Nothing here imports `segserve.runtime`, for the reason that `loading` gives.
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
    """A metric as `ts.metrics.caching_metric.CachingMetric` has it, for a handler to tell values to."""

    name: str
    dimension_names: Sequence[str]
    observations: list[Observation]

    def add_or_update(self, value: float, dimension_values: Sequence[str]) -> None:
        self.observations.append(Observation(self.name, value, tuple(dimension_values)))


class CollectedMetrics:
    """The metrics of one replica.

    Args:
        declared: names of labels by the names of the metrics that the door knows.
    """

    def __init__(self, declared: Mapping[str, Sequence[str]]) -> None:
        self._observations: list[Observation] = []
        sinks = {name: Sink(name, labels, self._observations) for name, labels in declared.items()}
        self.cache: Mapping[object, Mapping[str, Sink]] = {"declared": sinks}

    def drain(self) -> tuple[Observation, ...]:
        """What has been told since the last time."""
        taken = tuple(self._observations)
        self._observations.clear()
        return taken
