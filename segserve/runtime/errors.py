"""Every error response, as one hierarchy: a stable code, an HTTP status and a message for people.

A message says what is wrong, what was expected and what to do. It never contains a traceback or a
path.
"""

from http import HTTPStatus
from typing import ClassVar

from ..schema.response import ErrorBody, ErrorDetail


class SegserveError(Exception):
    """An error response. `str(error)` is the message, `code` is for programs."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"

    @property
    def phrase(self) -> str:
        """The reason phrase of the status, as Python names it."""
        return HTTPStatus(self.status).phrase

    def as_document(self) -> dict[str, dict[str, str]]:
        """The JSON body of the error response."""
        return ErrorBody(error=ErrorDetail(code=self.code, message=str(self))).model_dump()


class InternalError(SegserveError):
    """An internal fault. Its details are only in the server's log."""


class BadRequestError(SegserveError):
    """The request is invalid: no image, an unknown option or value, JSON that does not parse."""

    status = 400
    code = "bad_request"


class NoImageError(BadRequestError):
    code = "no_image"


class BadOptionError(BadRequestError):
    code = "bad_option"


class BadJSONError(BadRequestError):
    code = "bad_json"


class BadBase64Error(BadRequestError):
    code = "bad_base64"


class NotAcceptableError(SegserveError):
    """The client accepts none of the available media types."""

    status = 406
    code = "not_acceptable"


class RequestTimeoutError(SegserveError):
    """The request did not arrive within the time limit."""

    status = 408
    code = "request_timeout"


class TooLargeError(SegserveError):
    """More bytes or pixels than the server's limits allow."""

    status = 413
    code = "image_too_large"


class ResponseTooLargeError(TooLargeError):
    code = "answer_too_large"


class TooCostlyError(TooLargeError):
    """More forward passes than one request may take."""

    code = "cost_too_high"


class UnsupportedImageError(SegserveError):
    """Not an image, or one of a format or pixel type that is not read."""

    status = 415
    code = "image_unsupported"


class CorruptImageError(SegserveError):
    """An image of a known format that cannot be decoded whole."""

    status = 422
    code = "image_corrupt"


class TruncatedImageError(CorruptImageError):
    code = "image_truncated"


class OutOfMemoryError(SegserveError):
    """The device or the host had no memory left for this image."""

    status = 507
    code = "out_of_memory"


class UnavailableError(SegserveError):
    """The server cannot process the request now, but may be able to a little later."""

    status = 503
    code = "unavailable"


class OverloadedError(UnavailableError):
    """The queue is full."""

    code = "overloaded"


def error_classes() -> list[type[SegserveError]]:
    """Every kind of error that a server responds with, sorted by status and code."""
    kinds: list[type[SegserveError]] = [SegserveError]
    for kind in kinds:
        kinds.extend(kind.__subclasses__())
    return sorted(kinds, key=lambda kind: (kind.status, kind.code))


# Only PyTorch's own CUDA allocator raises a type of its own. The CPU's allocator, CUDA's libraries,
# CUDA itself and C++ report it in the message.
_NO_MEMORY = (
    "can't allocate memory",
    "CUDA error: out of memory",
    "_ALLOC_FAILED",
    "_ALLOCATION_FAILED",
    "bad_alloc",
    "Failed to allocate memory",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means too little memory, on the host or on a GPU."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _NO_MEMORY)


class ModelError(Exception):
    """A model that cannot be served. Raised at load, never by a request."""


class FetchError(ModelError):
    """The checkpoint of a published model is unavailable, or not the published one."""
