"""Reasons out of TorchServe's log: excerpts of real ones, with paths shortened."""

import pytest

from segserve.engines.torchserve_process import model_failure, server_failure

TIME = "2026-01-01T00:00:00,000"
RETRY = (
    f"{TIME} [INFO ] W-9000-net_1.0 org.pytorch.serve.wlm.WorkerThread - Retry worker: 9000 in 1 "
    "seconds.\n"
)


def worker(text, stream="stdout"):
    return "".join(
        f"{TIME} [INFO ] W-9000-net_1.0-{stream} MODEL_LOG - {line}\n" for line in text.split("\n")
    )


VALUE_ERROR = """Backend worker process died.
Traceback (most recent call last):
  File "handler.py", line 5, in initialize
    raise ValueError("weights do not match")
ValueError: weights do not match
second line"""

RUNTIME_ERROR = """Failed to load model net, exception head is wrong
Traceback (most recent call last):
  File "handler.py", line 3, in initialize
KeyError: 'x'

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "model_loader.py", line 143, in load
  File "handler.py", line 4, in initialize
segserve.runtime.errors.ModelError: head is wrong
Backend worker process died.
Traceback (most recent call last):
  File "model_service_worker.py", line 201, in handle_connection
RuntimeError: 500 - Unknown exception"""

IMPORT_ERROR = """Traceback (most recent call last):
  File "handler.py", line 1, in <module>
ModuleNotFoundError: No module named 'absent'

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "model_loader.py", line 159, in _load_default_handler
ModuleNotFoundError: No module named 'ts.torch_handler.handler'"""


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        pytest.param(VALUE_ERROR, "ValueError: weights do not match", id="any-error"),
        pytest.param(RUNTIME_ERROR, "ModelError: head is wrong", id="runtime-error-echoed-as-500"),
        pytest.param(
            IMPORT_ERROR, "ModuleNotFoundError: No module named 'absent'", id="import-error-hidden"
        ),
        pytest.param("Torch worker started.", "its process ended without a word", id="killed"),
    ],
)
def test_model_failure_with_dead_worker_returns_its_own_error(output, reason):
    failure = model_failure(worker(output) + RETRY + RETRY)
    assert failure is not None
    assert failure.startswith(f"the worker of the model 'net' failed to load: {reason}")


@pytest.mark.parametrize("retry", ["", RETRY], ids=["first-attempt", "second-attempt"])
def test_model_failure_while_loading_returns_none(retry):
    assert model_failure(worker(VALUE_ERROR) + retry) is None


def test_model_failure_with_rejected_archive_returns_the_front_end_s_reason():
    log = (
        f"{TIME} [WARN ] main org.pytorch.serve.ModelServer - Failed to load model: net.mar\n"
        "org.pytorch.serve.archive.model.InvalidModelException: Missing manifest\n\tat "
        "a.b.C(C.java:1)\n"
    )
    assert (
        model_failure(log)
        == "the model 'net.mar' was rejected: InvalidModelException: Missing manifest"
    )


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        pytest.param(
            "java.io.IOException: Failed to bind to address: http://127.0.0.1:8081\n\tat "
            "a.B(B.java:1)\n"
            "Caused by: io.netty.NativeIoException: bind(..) failed\n"
            'Exception in thread "Thread-0" java.util.concurrent.RejectedExecutionException: terminated\n',  # noqa: E501
            "IOException: Failed to bind to address: http://127.0.0.1:8081",
            id="exception",
        ),
        pytest.param(
            "Invalid configuration: no\n", "Invalid configuration: no", id="configuration"
        ),
        pytest.param(
            "Error: could not find libjava.so\n\n",
            "Error: could not find libjava.so",
            id="last-line",
        ),
        pytest.param("", "it wrote nothing", id="empty"),
    ],
)
def test_server_failure_returns_one_line(log, reason):
    assert server_failure(log) == reason
