"""Responses: errors become exceptions, transient ones are retried, and JSON a `Segmentation`. Every
message is one line of text for people.
"""

import base64
import binascii
import io
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson
from PIL import Image
from pydantic import ValidationError
from tenacity import (
    RetryCallState,
    retry_if_exception,
    stop_after_attempt,
    wait_exponential,
    wait_random,
)

from ..schema.response import ConfidenceMap, PngMask, PngResponse
from .segmentation import Segmentation

_TIMING = re.compile(r"([\w-]+);dur=([0-9.]+)")
_LONGEST_MESSAGE = 1000  # characters; a proxy may send a long page

_NOT_OURS = "this is not a segmentation server: check the address"
_NO_SUCH_PATH = "ResourceNotFoundException"  # of a TorchServe's other port
_UNKNOWN = "unknown"  # for an error without a code, such as a proxy's or another server's
_TOO_LARGE = (
    "the server takes no request of so many bytes; send a smaller image, or raise its "
    "max_request_size"
)

_TRANSIENT = (503, 507)  # 503: the queue is full or a worker restarts; 507: out of memory
# TorchServe's type, with status 500 or 507. The handler's errors have other codes.
_WORKER_DIED = "InternalServerException"
_LONGEST_WAIT_S = 60.0  # caps the delay that a server requests
_backoff = wait_exponential(multiplier=0.2, max=10) + wait_random(0, 0.2)


class ClientError(Exception):
    """Base class of the clients' errors, except errors in the caller's own arguments and files."""


class UnreachableError(ClientError):
    """No server responds at the address, or the connection broke during the response."""


class TimedOutError(ClientError):
    """The server accepted the request but did not respond in time."""


class MalformedResponseError(ClientError):
    """The response reports success but is not a segmentation of this image."""


class ResponseError(ClientError):
    """The server sent an error response.

    Attributes:
        status: the HTTP status.
        code: the error's code, for programs: `image_truncated`, or TorchServe's
            `ServiceUnavailableException`.
        message: the server's message, for people.
        retry_after_s: the delay before a retry that the server requested, in seconds, or None.
    """

    def __init__(
        self, status: int, code: str, message: str, *, retry_after_s: float | None = None
    ) -> None:
        super().__init__(f"{status} {code}: {message}")
        self.status = status
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s


class AuthenticationError(ResponseError):
    """The token is missing, wrong or expired. TorchServe does not report which."""


class UnknownModelError(ResponseError):
    """The server does not have this model, or not this version of it."""


# By the type of TorchServe's own error: the exception, and advice that TorchServe's message lacks.
_ADVICE: Mapping[str, tuple[type[ResponseError], str]] = {
    "InvalidKeyException": (AuthenticationError, "`segserve serve` prints a new one"),
    "ModelNotFoundException": (UnknownModelError, "name the model that is served"),
    "ModelVersionNotFoundException": (
        UnknownModelError,
        "leave the version out for the one that is served",
    ),
}


@dataclass(frozen=True)
class HttpResponse:
    """A server's response. The names of its `headers` are case-insensitive, or in lower case."""

    status: int
    phrase: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


def raise_for_error(response: HttpResponse) -> None:
    """Raises a `ResponseError` with the server's code and message if the response is an error."""
    if response.status == 200:
        return
    code, message = _code_and_message(response)
    kind, advice = _ADVICE.get(code, (ResponseError, ""))
    if response.status == 413 and not response.body:  # TorchServe's own
        code, message = "request_too_large", _TOO_LARGE
    if code in (_UNKNOWN, _NO_SUCH_PATH) and response.status in (401, 403, 404, 405):
        advice = _NOT_OURS
    if 300 <= response.status < 400:
        location = response.headers.get("location", "an unknown address")
        advice = f"the server redirects to {location!r:.200}; use that address"
    message = f"{message.rstrip('.')}; {advice}" if advice else message
    delay = response.headers.get("retry-after", "")
    retry_after_s = float(delay) if delay.isdecimal() else None
    raise kind(response.status, code, message, retry_after_s=retry_after_s)


def _code_and_message(response: HttpResponse) -> tuple[str, str]:
    """Reads an error of the handler, of TorchServe or of a proxy, which may send no JSON."""
    try:
        document = orjson.loads(response.body)
        error = dict(document.get("error", document))
    except (AttributeError, TypeError, ValueError):
        error = {}
    code = error.get("type") or error.get("code") or _UNKNOWN
    message = " ".join(str(error.get("message") or response.phrase).split())
    return str(code), message[:_LONGEST_MESSAGE]


def retry_policy(retries: int) -> dict[str, Any]:
    """Arguments for tenacity's `Retrying` and `AsyncRetrying`: broken connections and transient
    error responses are retried, after the delay that the server requests, else with exponential
    backoff. A timeout is not, because the server is probably still computing.
    """
    if retries < 0:
        raise ValueError(f"retries is how often a request is sent again, at least 0, got {retries}")
    return {
        "stop": stop_after_attempt(retries + 1),
        "wait": _wait_s,
        "retry": retry_if_exception(_is_transient),
        "reraise": True,
    }


def _is_transient(error: BaseException) -> bool:
    if isinstance(error, ResponseError):
        return error.status in _TRANSIENT or error.code == _WORKER_DIED
    return isinstance(error, UnreachableError)


def _wait_s(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, ResponseError) and error.retry_after_s is not None:
        return min(error.retry_after_s, _LONGEST_WAIT_S)
    return _backoff(state)


def read_segmentation(response: HttpResponse, image_file: bytes) -> Segmentation:
    """Reads the segmentation from the JSON response to a request with `mask=png`.

    Raises:
        ResponseError: the server sent an error response.
        MalformedResponseError: the response is no segmentation, or a mask has another size.
    """
    raise_for_error(response)
    try:
        document = PngResponse.model_validate_json(response.body)
    except ValidationError as error:
        reason = error.errors(include_url=False, include_input=False)[0]["msg"]
        raise MalformedResponseError(
            f"the response is not a segmentation ({reason}): is the address that of its inference "
            "port?"
        ) from error
    size_wh = document.width, document.height
    mask = _decoded(document.mask, size_wh, "mask", modes=("P", "L"))
    confidence = document.confidence and _decoded(
        document.confidence, size_wh, "confidence", modes=("L",)
    )
    timings = _TIMING.findall(response.headers.get("server-timing", ""))
    return Segmentation(
        label_map=np.asarray(mask),
        classes=document.classes,
        model=document.model.name,
        model_version=document.model.version,
        palette=bytes(mask.getpalette("RGB") or ()),
        image_file=image_file,
        confidence_map=np.asarray(confidence) if confidence else None,
        timings_ms={stage: float(ms) for stage, ms in timings},
    )


def _decoded(
    part: PngMask | ConfidenceMap, size_wh: tuple[int, int], name: str, *, modes: tuple[str, ...]
) -> Image.Image:
    """Decodes a PNG in a response, which must have this size and one of these modes."""
    try:
        content = base64.b64decode(part.data, validate=True)
    except binascii.Error as error:
        raise MalformedResponseError(f"the server's {name} is not base64: {error}") from error
    try:
        decoded = Image.open(io.BytesIO(content), formats=("PNG",))
        if decoded.size != size_wh or decoded.mode not in modes:
            raise MalformedResponseError(
                f"expected a {name} of mode {modes[0]} and {size_wh} pixels (width, height), got "
                f"{decoded.mode} and {decoded.size}"
            )
        decoded.load()
    # SyntaxError: an invalid chunk
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise MalformedResponseError(f"the server's {name} cannot be decoded: {error}") from error
    return decoded


def unreachable(url: str, error: Exception) -> UnreachableError:
    return UnreachableError(
        f"{url}: no server responds there ({' '.join(root_reason(error).split())[:200]}); "
        "start one with `segserve serve`, or see the log of the one that runs"
    )


def timed_out(url: str, timeout_s: float) -> TimedOutError:
    return TimedOutError(
        f"{url}: no response within {timeout_s:g} s; raise timeout_s, or send a smaller image"
    )


def root_reason(error: BaseException) -> str:
    """The operating system's message, if there is one in the chain of HTTP libraries' errors."""
    reason, cause = str(error), error
    while cause := cause.__cause__ or cause.__context__:  # type: ignore[assignment]
        if isinstance(cause, OSError) and cause.strerror:
            reason = cause.strerror
            # asyncio replaces the message of a connection error
            if isinstance(cause, ConnectionError) and cause.errno is not None:
                reason = os.strerror(cause.errno)
    return reason or type(error).__name__
