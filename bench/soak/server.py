"""Runs the container's command as a process and samples its resource use."""

import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import psutil
import requests

from bench.serving.peer import BenchError

_READY_S = 600
_STOP_S = 90
_CLIENT_HEADER = "X-Client"


@dataclass(frozen=True)
class Running:
    """A running server that is ready."""

    url: str
    model: str
    token: str = field(repr=False)
    process: subprocess.Popen[bytes] = field(repr=False)

    def waiting(self) -> int:
        """The number of requests in TorchServe's queue."""
        headers = {
            "Authorization": f"Bearer {self.token}",
            _CLIENT_HEADER: "watcher",
        }  # not queued after the load
        [version] = requests.get(
            f"{self.url}/models/{self.model}", headers=headers, timeout=30
        ).json()
        return int(version["jobQueueStatus"]["pendingRequests"])


@contextmanager
def container(archive: Path, model: str, folder: Path) -> Iterator[Running]:
    """Runs `python -m segserve.gateway` for one archive. The log is `folder/log`.

    Raises:
        BenchError: the server exited, or was not ready in time.
    """
    folder.mkdir(parents=True)
    token = secrets.token_urlsafe(24)
    (folder / "token").write_text(token, encoding="ascii")
    (folder / "token").chmod(0o600)
    ports = dict(zip(("PORT", "METRICS_PORT"), _free_ports(2), strict=True))
    own = {
        "ARCHIVE": archive,
        "TOKEN_FILE": folder / "token",
        "HOST": "127.0.0.1",
        "RUN_DIR": folder / "run",
    }
    own |= ports | {"CLIENT_HEADER": _CLIENT_HEADER}
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("SEGSERVE_")
    }
    environment |= {f"SEGSERVE_{name}": str(value) for name, value in own.items()}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "segserve.gateway"], env=environment, stdout=log
        )
    try:
        running = Running(f"http://127.0.0.1:{ports['PORT']}", model, token, process)
        _wait_ready(running, folder / "log")
        yield running
    finally:
        process.terminate()
        process.wait(_STOP_S)


def _free_ports(count: int) -> list[int]:
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


def _wait_ready(running: Running, log: Path) -> None:
    deadline = time.monotonic() + _READY_S
    while time.monotonic() < deadline:
        if running.process.poll() is not None:
            raise BenchError(f"the server ended; its log is {log}")
        with suppress(requests.ConnectionError):
            if requests.get(f"{running.url}/ping", timeout=5).ok:
                return
        time.sleep(0.5)
    raise BenchError(f"the server is not ready after {_READY_S} s; its log is {log}")


class Sample(NamedTuple):
    """The resource use of all of the server's processes together, at one time.

    Attributes:
        at_s: seconds since the start of the watch.
        memory_bytes: the sum of the resident sets. Shared pages count once per process.
        descriptors: number of open file descriptors.
        threads: number of threads.
        waiting: number of requests in TorchServe's queue.
    """

    at_s: float
    memory_bytes: int
    descriptors: int
    threads: int
    waiting: int


class Watch:
    """Takes samples periodically within its context."""

    def __init__(self, server: Running, *, every_s: float) -> None:
        self.samples: list[Sample] = []
        self._server = server
        self._every_s = every_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._began_s = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(self._every_s):
            with suppress(
                psutil.Error, requests.RequestException, ValueError, LookupError
            ):  # a process ended; try again later
                self.samples.append(self._sample())

    def _sample(self) -> Sample:
        leader = psutil.Process(self._server.process.pid)
        tree = [leader, *leader.children(recursive=True)]
        return Sample(
            time.monotonic() - self._began_s,
            sum(process.memory_info().rss for process in tree),
            sum(process.num_fds() for process in tree),
            sum(process.num_threads() for process in tree),
            self._server.waiting(),
        )
