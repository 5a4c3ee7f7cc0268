"""The one interface of everything that is measured."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from .figures import Run


class Contestant(Protocol):
    """A row of the table: a server that is asked over HTTP in one way, or a loop without a server."""

    def warm_up(self) -> None:
        """Gets every shape computed.

        Raises:
            BenchError: an image is not answered.
        """

    def run(self, clients: int) -> Run:
        """Works through the requests, so many of them at any time."""


@dataclass(frozen=True)
class Opened:
    """A rival that is ready to be measured.

    Attributes:
        contestants: by the title of their row.
        pid: the process that all its others come from.
        start_s: from the start of that process until it was ready.
    """

    contestants: Mapping[str, Contestant]
    pid: int
    start_s: float
