"""The gateway's responses: JSON errors, and bodies that are sent under a time limit."""

import asyncio
import logging

import orjson
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..engines import EngineResponse
from ..engines.errors import FrontendError, unknown_method, unknown_path
from ..runtime.errors import InternalError, SegserveError, UnavailableError

logger = logging.getLogger("segserve.gateway")

JSON = "application/json"
_RETRY_AFTER_S = 2
_CHUNK_BYTES = 2**16
_NOT_ALLOWED = 405


class TimedResponse(Response):
    """A response that the client must read within a time limit.

    It is sent in chunks, because uvicorn waits for a slow client before each chunk but the first.
    A client that is too slow is disconnected, because a response stays in memory until it is read.
    """

    def __init__(self, response: EngineResponse, *, timeout_s: float) -> None:
        super().__init__(response.body, response.status)
        kept = [header for header in response.headers if header[0] != b"content-length"]
        self.raw_headers = [*kept, *self.raw_headers]  # its own content-length
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._send(send)
        except TimeoutError:
            logger.warning("a response was not read within %g s", self._timeout_s)
            scope["state"]["abort"]()

    async def _send(self, send: Send) -> None:
        body = memoryview(self.body)
        start = {"type": "http.response.start", "status": self.status_code}
        await send({**start, "headers": self.raw_headers})
        for offset in range(0, len(body), _CHUNK_BYTES):
            chunk = bytes(body[offset : offset + _CHUNK_BYTES])
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def json_response(document: object, status: int = 200) -> Response:
    """A JSON document, with Retry-After if the server is not available."""
    is_unavailable = status == UnavailableError.status
    headers = {"retry-after": str(_RETRY_AFTER_S)} if is_unavailable else None
    return Response(orjson.dumps(document), status, headers, JSON)


def error_response(error: Exception) -> Response:
    """The JSON response for an exception. The details of an internal error go only to the log."""
    match error:
        case FrontendError():
            return Response(error.body, error.status, media_type=JSON)
        case HTTPException():
            is_method = error.status_code == _NOT_ALLOWED
            return error_response(unknown_method() if is_method else unknown_path())
        case SegserveError():
            return json_response(error.as_document(), error.status)
    logger.error("a request failed", exc_info=error)
    return error_response(InternalError("the server failed at this request; its log says why"))
