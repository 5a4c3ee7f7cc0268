"""When a request is sent again. A request changes nothing at the server, hence any of them may be."""

from typing import Any

from tenacity import RetryCallState, retry_if_exception, stop_after_attempt, wait_exponential, wait_random

from .errors import RefusedError, UnreachableError

_TRANSIENT = (503, 507)  # the queue is full or a worker restarts; no memory left
_WORKER_DIED = (
    "InternalServerException"  # TorchServe's type, with status 500 or 507; a handler's fault has its own code
)
_LONGEST_WAIT_S = 60.0  # a server that asks for more is waited for so long
_backoff = wait_exponential(multiplier=0.2, max=10) + wait_random(0, 0.2)


def policy(retries: int) -> dict[str, Any]:
    """Arguments for tenacity's `Retrying` and `AsyncRetrying`: broken connections and transient refusals are tried
    again, after what the server asks to wait or else after growing pauses; the last error is raised.

    An answer that does not come in time is not asked for again: the server is likely still at it.

    Raises:
        ValueError: fewer than no retries.
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
    if isinstance(error, RefusedError):
        return error.status in _TRANSIENT or error.code == _WORKER_DIED
    return isinstance(error, UnreachableError)


def _wait_s(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, RefusedError) and error.retry_after_s is not None:
        return min(error.retry_after_s, _LONGEST_WAIT_S)
    return _backoff(state)
