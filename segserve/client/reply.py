"""The server's response in one form for every transport, and the conversion of error responses to
exceptions.
"""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime

import orjson

from .errors import AuthenticationError, ResponseError, UnknownModelError

_TIMING = re.compile(r"([\w-]+);dur=([0-9.]+)")
_LONGEST_MESSAGE = 1000  # characters; a proxy may send a long page

# By the type of TorchServe's own error: the exception, and advice that TorchServe's message lacks.
_ADVICE: Mapping[str, tuple[type[ResponseError], str]] = {
    "InvalidKeyException": (AuthenticationError, "`segserve serve` prints a new one"),
    "ModelNotFoundException": (UnknownModelError, "name the model that is served"),
    "ModelVersionNotFoundException": (
        UnknownModelError,
        "leave the version out for the one that is served",
    ),
    "ServiceUnavailableException": (ResponseError, "send fewer requests at once"),
    "ResourceNotFoundException": (ResponseError, "name the address of the inference port"),
}
_NOT_OURS = "this is not a segmentation server: check the address"
_UNKNOWN = "unknown"  # for an error without a code, such as a proxy's or another server's
_TOO_LARGE = (
    "the server takes no request of so many bytes; send a smaller image, or raise its "
    "max_request_size"
)


@dataclass(frozen=True)
class HttpResponse:
    """A server's response. Header names are lower case."""

    status: int
    phrase: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def timings_ms(self) -> dict[str, float]:
        """Milliseconds per stage, from the header `Server-Timing`."""
        return {
            stage: float(ms) for stage, ms in _TIMING.findall(self.headers.get("server-timing", ""))
        }


def raise_for_error(response: HttpResponse) -> None:
    """Raises an exception if the response is an error.

    Raises:
        ResponseError: the response is an error; the exception has the server's code and message.
    """
    if response.status == 200:
        return
    code, message = _code_and_message(response)
    kind, advice = _ADVICE.get(code, (ResponseError, ""))
    if (
        response.status == 413 and not response.body
    ):  # TorchServe's own, sent before the handler runs
        code, message = "request_too_large", _TOO_LARGE
    if code == _UNKNOWN and response.status in (401, 403, 404, 405):
        advice = _NOT_OURS
    if 300 <= response.status < 400:
        location = response.headers.get("location", "an unknown address")
        advice = f"the server redirects to {location!r:.200}; use that address"
    message = f"{message.rstrip('.')}; {advice}" if advice else message
    raise kind(
        response.status,
        code,
        message,
        retry_after_s=_retry_after_s(response.headers.get("retry-after", "")),
    )


def _code_and_message(response: HttpResponse) -> tuple[str, str]:
    """Reads an error of the handler, of TorchServe or of a proxy. Their formats differ; a proxy may
    send no JSON.
    """
    try:
        document = orjson.loads(response.body)
    except orjson.JSONDecodeError:
        document = {}
    error = document.get("error", document) if isinstance(document, dict) else {}
    error = error if isinstance(error, dict) else {"message": error}
    code = error.get("type") or error.get("code") or _UNKNOWN
    message = " ".join(str(error.get("message") or response.phrase).split())
    return str(code), message[:_LONGEST_MESSAGE]


def _retry_after_s(value: str) -> float | None:
    """Converts a number of seconds or a date (RFC 9110, section 10.2.3) to seconds; None for any
    other value.
    """
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
