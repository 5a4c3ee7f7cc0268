"""The common interface of all measured systems, and their error."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from .figures import Run


class BenchError(Exception):
    """A benchmark or one of its systems cannot continue. The message is one line of text for
    people.
    """


class Peer(Protocol):
    """A row of the table: a server with one kind of HTTP request, or a loop without a server."""

    def warm_up(self) -> None:
        """Processes every input shape once.

        Raises:
            BenchError: an image failed.
        """

    def run(self, clients: int) -> Run:
        """Processes all requests, with `clients` of them in flight."""


@dataclass(frozen=True)
class Opened:
    """A system that is ready for measurement.

    Attributes:
        peers: the system's rows, by title.
        pid: the root of the system's process tree.
        start_s: seconds from the process's start until it was ready.
    """

    peers: Mapping[str, Peer]
    pid: int
    start_s: float
