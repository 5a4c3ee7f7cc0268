"""The body of a request on its way through the gateway. Its size and its duration are limited."""

import asyncio
from collections.abc import AsyncIterator

from aiohttp import StreamReader

from ..runtime.errors import RequestTimeoutError, SegserveError, TooLargeError


class Body:
    """The rest of a request's body, in chunks as it arrives.

    Args:
        max_bytes: a larger body is rejected, whether or not its length was declared.
        timeout_s: the time limit for the whole body.
    """

    def __init__(self, content: StreamReader, *, max_bytes: int, timeout_s: float) -> None:
        self._content = content
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self.error: SegserveError | None = None
        """The error that ended the body, for callers that read it through a library that wraps
        errors in its own.
        """

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yields the chunks.

        Raises:
            TooLargeError: the body is larger than the limit.
            RequestTimeoutError: the body takes longer than the limit.
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
            self.error = RequestTimeoutError(
                f"the request did not arrive whole within {self._timeout_s:g} s; send it faster, "
                "or the image smaller"
            )
            raise self.error from None


def too_large(max_bytes: int) -> TooLargeError:
    return TooLargeError(
        f"the request has more bytes than the {max_bytes} that are taken; send the image smaller, "
        "or as JPEG or PNG"
    )
