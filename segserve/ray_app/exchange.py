"""What goes between the door and the replicas of a model."""

from collections.abc import Mapping
from dataclasses import dataclass

from .collected import Observation


@dataclass(frozen=True)
class Received:
    """A request as TorchServe hands it to a handler: `row` is `{"body": content}` or `{part name: content}`."""

    row: Mapping[str, bytes]
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Handled:
    """A handler's answer, the seconds that its batch took, and what the replica has told since the last one."""

    status: int
    body: bytes
    headers: Mapping[str, str]
    seconds: float
    observations: tuple[Observation, ...] = ()


DESCRIBE = Received({}, {"describe": "True"})
"""A describe request, as TorchServe puts it to a handler."""
