"""The body of a request on its way through the door, which neither ends never nor grows for ever."""

import asyncio
from collections.abc import AsyncIterator
from typing import ClassVar

from aiohttp import StreamReader

from ..runtime.errors import BadRequestError, SegserveError, TooLargeError


class TooSlowError(BadRequestError):
    """The request did not arrive within the time that one may take."""

    status: ClassVar[int] = 408
    phrase: ClassVar[str] = "Request Timeout"
    code: ClassVar[str] = "request_timeout"


class Body:
    """What is left of a request, piece by piece as it arrives.

    Args:
        max_bytes: more is refused, whether or not its length was told.
        timeout_s: how long all of it may take.
    """

    def __init__(self, content: StreamReader, *, max_bytes: int, timeout_s: float) -> None:
        self._content = content
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self.error: SegserveError | None = None
        """Why it was given up, for whoever reads it through a library that wraps errors in its own."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Raises:
        TooLargeError: it is larger than it may be.
        TooSlowError: it takes longer than it may.
        """
        received = 0
        deadline = asyncio.get_running_loop().time() + self._timeout_s
        while piece := await self._next(deadline):
            received += len(piece)
            if received > self._max_bytes:
                self.error = too_large(self._max_bytes)
                raise self.error
            yield piece

    async def _next(self, deadline: float) -> bytes:
        try:
            async with asyncio.timeout_at(deadline):
                return await self._content.readany()
        except TimeoutError:
            self.error = TooSlowError(
                f"the request did not arrive whole within {self._timeout_s:g} s; send it faster, or the image smaller"
            )
            raise self.error from None


def too_large(max_bytes: int) -> TooLargeError:
    return TooLargeError(
        f"the request has more bytes than the {max_bytes} that are taken; send the image smaller, or as JPEG or PNG"
    )
