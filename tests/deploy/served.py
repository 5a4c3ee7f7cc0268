"""The container's command as a process, a handler for it, and clients that notice what they
lose.
"""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import requests

from tests.conftest import PROJECT

ECHO = """
import time

class Echo:
    def initialize(self, context):
        pass

    def handle(self, data, context):
        time.sleep(0.1)
        return [VERSION for _ in data]
"""


class Command:
    """`python -m segserve.gateway` with these variables and no others of segserve's."""

    def __init__(self, folder: Path, **variables: object) -> None:
        self._log = folder / "stdout"
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("SEGSERVE_")
        }
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "segserve.gateway"],
                cwd=PROJECT,
                env=environment
                | {f"SEGSERVE_{name}": str(value) for name, value in variables.items()},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def lines(self) -> list[dict]:
        return [json.loads(line) for line in self._log.read_text(encoding="utf-8").splitlines()]

    def wait_ready(self, url: str, timeout_s: float = 120) -> None:
        deadline = time.monotonic() + timeout_s
        while not responses(f"{url}/ping"):
            assert self.process.poll() is None, self.lines()[-1]
            assert time.monotonic() < deadline, self.lines()[-5:]
            time.sleep(0.2)


@contextmanager
def running(folder: Path, **variables: object):
    command = Command(folder, **variables)
    try:
        yield command
    finally:
        command.process.terminate()
        command.process.wait(60)


def responses(url: str, *, verify: bool | str = True) -> bool:
    try:
        return requests.get(url, timeout=5, verify=verify).ok
    except requests.ConnectionError:
        return False


def free_ports(count: int) -> list[int]:
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


class Load:
    """Clients that send one request after the other, each over one connection, until a
    connection is rejected.

    `outcomes` counts responses by `outcome_of`, rejected connections, and lost requests.
    """

    def __init__(
        self,
        url: str,
        token: str,
        *,
        clients: int,
        body: bytes = b"x",
        headers: dict[str, str] | None = None,
        outcome_of: Callable[[requests.Response], str] = lambda _: "completed",
    ) -> None:
        self._url, self._body, self._outcome_of = url, body, outcome_of
        self._headers = {"Authorization": f"Bearer {token}", **(headers or {})}
        self.outcomes: Counter[str] = Counter()
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._send_on) for _ in range(clients)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(60)

    def wait_for(self, outcome: str, count: int, timeout_s: float = 60) -> None:
        deadline = time.monotonic() + timeout_s
        while self.outcomes[outcome] < count:
            assert time.monotonic() < deadline, self.outcomes
            time.sleep(0.05)

    def _send_on(self) -> None:
        with requests.Session() as session:
            session.trust_env = False
            while not self._over.is_set():
                try:
                    response = session.post(
                        self._url, data=self._body, headers=self._headers, timeout=120
                    )
                    self.outcomes[
                        self._outcome_of(response)
                        if response.ok
                        else f"status {response.status_code}"
                    ] += 1
                except requests.ConnectionError as error:
                    rejected = "Connection refused" in str(error)
                    self.outcomes["rejected" if rejected else f"lost: {error}"] += 1
                    if rejected:
                        return
