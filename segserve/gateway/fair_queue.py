"""Concurrency slots per client: how many requests of one client TorchServe holds at a time, and how
many more may wait.

TorchServe's queue is first in, first out for all clients together. If one client sends a hundred
requests at once, all others wait for a hundred responses. If each client has only a few requests in
the queue, the others wait only for those few.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ..runtime.errors import OverloadedError


class _Line:
    """The requests of one client: those that hold a slot, and those that wait for one in the order
    of their arrival.
    """

    def __init__(self, in_flight: int) -> None:
        self.turns = asyncio.Semaphore(in_flight)
        self.length = 0


class Turns:
    """A queue for every client that has requests here.

    Args:
        in_flight: how many requests of one client hold a slot at the same time.
        waiting: how many more of its requests may wait for one.
    """

    def __init__(self, *, in_flight: int, waiting: int) -> None:
        self._in_flight = in_flight
        self._longest = in_flight + waiting
        self._lines: dict[str, _Line] = {}

    @asynccontextmanager
    async def turn(self, client: str) -> AsyncIterator[None]:
        """Waits for a slot and holds it until the context ends.

        Raises:
            OverloadedError: as many requests of the client wait as are allowed.
        """
        line = self._lines.setdefault(client, _Line(self._in_flight))
        if line.length >= self._longest:
            raise OverloadedError(
                f"{line.length} requests of yours are here already; send fewer, or again later"
            )
        line.length += 1
        try:
            async with line.turns:
                yield
        finally:
            line.length -= 1
            if not line.length:
                del self._lines[client]
