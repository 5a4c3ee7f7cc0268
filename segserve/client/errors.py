"""The exceptions of the clients. Every message is one line of text for people."""

import os


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
