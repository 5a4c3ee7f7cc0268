"""The retry policy. Requests do not change the server's state, so every request may be repeated."""

from typing import Any

from tenacity import (
    RetryCallState,
    retry_if_exception,
    stop_after_attempt,
    wait_exponential,
    wait_random,
)

from .errors import ResponseError, UnreachableError

_TRANSIENT = (503, 507)  # 503: the queue is full or a worker restarts; 507: out of memory
# TorchServe's type, with status 500 or 507. The handler's errors have other codes.
_WORKER_DIED = "InternalServerException"
_LONGEST_WAIT_S = 60.0  # caps the delay that a server requests
_backoff = wait_exponential(multiplier=0.2, max=10) + wait_random(0, 0.2)


def policy(retries: int) -> dict[str, Any]:
    """Arguments for tenacity's `Retrying` and `AsyncRetrying`.

    Broken connections and transient error responses are retried. The delay is the one that the
    server requests; without one, it is an exponential backoff. After the last attempt, the last
    error is raised. A timeout is not retried, because the server is probably still computing.

    Raises:
        ValueError: `retries` is negative.
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
