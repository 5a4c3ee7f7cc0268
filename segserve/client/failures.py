"""Creates the errors for a failed connection. Every message is one line of text."""

import os

from .errors import TimedOutError, UnreachableError
from .request import Target


def unreachable(target: Target, reason: str) -> UnreachableError:
    return UnreachableError(
        f"{target.url}: no server responds there ({' '.join(reason.split())[:200]}); "
        "start one with `segserve serve`, or see the log of the one that runs"
    )


def timed_out(target: Target) -> TimedOutError:
    return TimedOutError(
        f"{target.url}: no response within {target.timeout_s:g} s; raise timeout_s, or send "
        "a smaller image"
    )


def reason_of(error: BaseException) -> str:
    """The operating system's message, if there is one. HTTP libraries wrap it in several
    exceptions.
    """
    reason, cause = str(error), error
    while cause := cause.__cause__ or cause.__context__:  # type: ignore[assignment]
        if isinstance(cause, OSError) and cause.strerror:
            reason = cause.strerror
            if (
                isinstance(cause, ConnectionError) and cause.errno is not None
            ):  # asyncio replaces the message
                reason = os.strerror(cause.errno)
    return reason or type(error).__name__
