"""Whose turn it is: how many requests of one client TorchServe has at a time, and how many more of its may wait.

TorchServe's queue is first in, first out over everybody: behind a client that sends a hundred requests at once, all
others wait for a hundred answers. Where each client has but a few requests in it, they wait for those few.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ..runtime.errors import OverloadedError


class _Line:
    """The requests of one client: those that have a turn and those that wait for one, in the order they came."""

    def __init__(self, in_flight: int) -> None:
        self.turns = asyncio.Semaphore(in_flight)
        self.length = 0


class Turns:
    """A line for every client that has requests here.

    Args:
        in_flight: how many requests of one client have a turn at the same time.
        waiting: how many more of its requests may wait for one.
    """

    def __init__(self, *, in_flight: int, waiting: int) -> None:
        self._in_flight = in_flight
        self._longest = in_flight + waiting
        self._lines: dict[str, _Line] = {}

    @property
    def clients(self) -> int:
        """How many have requests here."""
        return len(self._lines)

    @asynccontextmanager
    async def turn(self, client: str) -> AsyncIterator[None]:
        """Waits for a turn, which ends with the context.

        Raises:
            OverloadedError: as many requests of the client wait as may.
        """
        line = self._lines.setdefault(client, _Line(self._in_flight))
        if line.length >= self._longest:
            raise OverloadedError(f"{line.length} requests of yours are here already; send fewer, or again later")
        line.length += 1
        try:
            async with line.turns:
                yield
        finally:
            line.length -= 1
            if not line.length:
                del self._lines[client]
