"""Reads TorchServe's log: why a model did not load, and why the server itself ended."""

import re

# What the worker and the front end say after the real reason, or on top of it.
_ECHOES = (
    "500 - Unknown exception",
    "507 - System out of memory",
    "No module named 'ts.torch_handler.",
)
_MODEL_LINE = re.compile(r"^\S+ \[\w+ *\] (W-\d+-(.+)_[^_]*)-(?:stdout|stderr) MODEL_LOG - (.*)$")
_RETRY = re.compile(r" (W-\d+-(.+)_[^_]*) org\.pytorch\.serve\.wlm\.\S+ - Retry worker: ")
_REJECTED = re.compile(r" org\.pytorch\.serve\.ModelServer - Failed to load model: (.+)\n(.+)")
_JAVA_ERROR = re.compile(
    r"^(?:[\w$]+\.)+(\w+(?:Exception|Error)): (.+)$|^(Invalid configuration: .+)$", re.MULTILINE
)


def model_failure(log: str) -> str | None:
    """One line on the first model that failed to load; None until a failure is logged whole."""
    rejected = _REJECTED.search(log)
    if rejected is not None:
        return f"the model {rejected[1]!r} was rejected: {_short(rejected[2])}"
    retry = _RETRY.search(log)
    if retry is None:
        return None
    reason = _worker_error(log, retry[1]) or (
        "its process ended without a word (killed, perhaps for lack of memory)"
    )
    return f"the worker of the model {retry[2]!r} failed to load: {reason}"


def failure_explained(log: str) -> bool:
    """Whether the log has the reason of the first worker that failed, and all its output so far.

    The log lags behind, and TorchServe drops what it has not read when a worker's process ends. A
    worker is started again and fails again, mostly with its reason.
    """
    retry = _RETRY.search(log)
    if retry is None:
        return True
    failures = sum(match[1] == retry[1] for match in _RETRY.finditer(log))
    read = (log.count(f"Stopped Scanner - {retry[1]}-{name}") for name in ("stdout", "stderr"))
    return min(read) >= failures and _worker_error(log, retry[1]) is not None


def server_failure(log: str) -> str:
    """One line on why the server ended: its last exception, else the last line of the log."""
    errors = list(_JAVA_ERROR.finditer(log))
    if errors:
        return errors[-1][3] or f"{errors[-1][1]}: {errors[-1][2]}"
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return lines[-1] if lines else "it wrote nothing"


def _worker_error(log: str, worker: str) -> str | None:
    """The last exception that the worker printed, without those that only repeat or hide it."""
    lines = [match for match in map(_MODEL_LINE.match, log.splitlines()) if match is not None]
    errors, in_traceback = [], False
    for text in (match[3] for match in lines if match[1] == worker):
        if text.startswith("Traceback (most recent call last):"):
            in_traceback = True
        elif in_traceback and text and not text.startswith(" "):
            in_traceback = False
            errors.append(text)
    reported = [error for error in errors if not any(echo in error for echo in _ECHOES)]
    return _short(reported[-1]) if reported else None


def _short(error: str) -> str:
    """`package.module.SomeError: text` as `SomeError: text`."""
    return re.sub(r"^(?:[\w$]+\.)+(?=\w+(?::|$))", "", error.strip())
