"""Servers as processes: started, waited for, and ended with all that they started."""

import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import requests

from segserve.server.tree import ProcessTree

from ..errors import BenchError

HOST = "127.0.0.1"
READY_S = 600
_POLL_S = 0.25
_STOP_S = 20


@contextmanager
def running(
    command: Sequence[str],
    log: Path,
    health_url: str,
    *,
    environment: Mapping[str, str] | None = None,
    ca_file: Path | None = None,
) -> Iterator[int]:
    """A command while it runs, from when its address answers 200 on; its process id.

    Args:
        log: gets what it prints.
        environment: in place of this process's.
        ca_file: the certificate that its own must be signed by.

    Raises:
        BenchError: it ends early, or is not ready in time.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    tree = ProcessTree.of(process.pid)
    try:
        _wait_until_healthy(health_url, process, log, str(ca_file) if ca_file else True)
        yield process.pid
    finally:
        tree.stop(_STOP_S)
        process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _wait_until_healthy(url: str, process: subprocess.Popen[bytes], log: Path, verify: bool | str) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            words = log.read_text(errors="replace").split()
            raise BenchError(f"it ended with status {process.returncode}: {' '.join(words)[-300:]}")
        try:
            if requests.get(url, timeout=5, verify=verify).ok:
                return
        except requests.RequestException:
            pass  # it does not listen yet
        time.sleep(_POLL_S)
    raise BenchError(f"it is not ready after {READY_S} s")
