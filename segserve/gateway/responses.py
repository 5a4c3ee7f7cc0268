"""The gateway's error responses and its access log."""

import json
import logging

from aiohttp import hdrs, web

from ..runtime.errors import InternalError, SegserveError, UnavailableError
from .torchserve_errors import RefusalError, unknown_method, unknown_path

logger = logging.getLogger("segserve.gateway")

SENDER_GONE = 499
"""The client closed the connection. nginx's code; appears only in logs and metrics."""

_RETRY_AFTER_S = 2
_TELLING_NOTHING = frozenset({"/ping", "/metrics"})  # requested every few seconds


def refusal_for(error: Exception) -> web.Response:
    """The JSON error response for an exception. For an internal error, the details go only to the
    log.
    """
    match error:
        case RefusalError():
            return web.Response(
                body=error.body, status=error.status, content_type="application/json"
            )
        case web.HTTPNotFound():
            return refusal_for(unknown_path())
        case web.HTTPMethodNotAllowed():
            return refusal_for(unknown_method())
        case SegserveError():
            headers = (
                {hdrs.RETRY_AFTER: str(_RETRY_AFTER_S)}
                if isinstance(error, UnavailableError)
                else None
            )
            text = json.dumps(error.as_document())
            return web.Response(
                text=text, status=error.status, headers=headers, content_type="application/json"
            )
    logger.error("a request failed", exc_info=error)
    return refusal_for(InternalError("the server failed at this request; its log says why"))


def log(request: web.Request, response: web.StreamResponse, status: int, seconds: float) -> None:
    """Logs one line per request, except for health checks and metrics.

    Args:
        status: of the response, or 499.
    """
    if request.path in _TELLING_NOTHING:
        return
    fields = {
        "method": request.method,
        "path": request.path,
        "status": status,
        "duration_ms": round(seconds * 1000, 1),
        "request_bytes": request.content_length,
        "response_bytes": response.content_length,
        "client": request.remote,
        "traceparent": request.headers.get("traceparent"),
    }
    told = {name: value for name, value in fields.items() if value is not None}
    logger.info("%s %s %s", request.method, request.path, response.status, extra={"fields": told})
