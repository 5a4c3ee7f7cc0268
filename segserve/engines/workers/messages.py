"""The messages between the HTTP application and the workers of a model."""

from collections.abc import Mapping
from dataclasses import dataclass

from .context import Observation


@dataclass(frozen=True)
class Received:
    """A request as TorchServe passes it to a handler: `row` is `{"body": content}` or `{part name:
    content}`.
    """

    row: Mapping[str, bytes]
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Handled:
    """A handler's response, the duration of its batch in seconds, and the metrics reported since
    the last response.
    """

    status: int
    body: bytes
    headers: Mapping[str, str]
    seconds: float
    observations: tuple[Observation, ...] = ()


DESCRIBE = Received({}, {"describe": "True"})
"""A describe request, as TorchServe passes it to a handler."""
