"""What all measured systems share: the images, the interface and the error."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from .figures import Run


class BenchError(Exception):
    """A benchmark or one of its systems cannot continue."""


@dataclass(frozen=True)
class Workload:
    """The image files of one measurement, in order, and its limits.

    Attributes:
        warm_up: every photograph once, and so every shape of the network's input.
        max_s: no request starts later than this many seconds after the first.
        encodings: of the masks in the responses of the served model.
        scratch: an existing folder for the systems' files.
    """

    model: Path
    requests: tuple[Path, ...]
    warm_up: tuple[Path, ...]
    max_s: float
    encodings: tuple[str, ...]
    scratch: Path


class Peer(Protocol):
    """A row of the table: a server with one kind of HTTP request, or a loop without a server."""

    def warm_up(self) -> None:
        """Processes every input shape. Raises BenchError if an image fails."""

    def run(self, clients: int) -> Run:
        """Processes all requests, with `clients` of them in flight."""


@dataclass(frozen=True)
class Opened:
    """A started system: its rows by title, the root of its process tree, the time of its start."""

    peers: Mapping[str, Peer]
    pid: int
    start_s: float
