"""Runs the container's command as a process and samples its resource use."""

import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import psutil
import requests

from bench.serving.peers.processes import running_container

_CLIENT_HEADER = "X-Client"


@dataclass(frozen=True)
class Running:
    """A running server that is ready."""

    url: str
    model: str
    pid: int
    token: str = field(repr=False)

    def waiting(self) -> int:
        """The number of requests in TorchServe's queue."""
        headers = {
            "Authorization": f"Bearer {self.token}",
            _CLIENT_HEADER: "watcher",  # not queued after the load
        }
        [version] = requests.get(
            f"{self.url}/models/{self.model}", headers=headers, timeout=30
        ).json()
        return int(version["jobQueueStatus"]["pendingRequests"])


@contextmanager
def container(archive: Path, model: str, folder: Path) -> Iterator[Running]:
    """Runs the container's command for one archive. Errors and log as those of
    `running_container`.
    """
    folder.mkdir(parents=True)
    token, token_file = secrets.token_urlsafe(24), folder / "token"
    token_file.write_text(token, encoding="ascii")
    token_file.chmod(0o600)
    with running_container(archive, token_file, folder, CLIENT_HEADER=_CLIENT_HEADER) as (url, pid):
        yield Running(url, model, pid, token)


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


@contextmanager
def watched(server: Running, *, every_s: float) -> Iterator[list[Sample]]:
    """Takes samples periodically within the context, and yields the list that receives them."""
    samples: list[Sample] = []
    over, began_s = threading.Event(), time.monotonic()

    def watch() -> None:
        while not over.wait(every_s):
            with suppress(
                psutil.Error, requests.RequestException, ValueError, LookupError
            ):  # a process ended; try again later
                samples.append(_sample(server, began_s))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        over.set()
        thread.join()


def _sample(server: Running, began_s: float) -> Sample:
    leader = psutil.Process(server.pid)
    tree = [leader, *leader.children(recursive=True)]
    return Sample(
        time.monotonic() - began_s,
        sum(process.memory_info().rss for process in tree),
        sum(process.num_fds() for process in tree),
        sum(process.num_threads() for process in tree),
        server.waiting(),
    )
