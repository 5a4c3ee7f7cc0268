"""A server that is a Python module: `python -m bench.serving.rivals.MODULE --port ... `, on a free port."""

import argparse
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import requests

from segserve.server.tree import ProcessTree

from ..contestant import Opened
from ..errors import BenchError
from ..load import Door
from ..over_http import HttpContestant
from ..workload import Workload
from .steps import STEPS

HOST = "127.0.0.1"
READY_S = 600
_POLL_S = 0.25
_STOP_S = 20

# How each module takes images, as the documentation of its framework shows it.
_DOORS: Mapping[str, Callable[[str], Door]] = {
    "litserve_server": lambda url: Door(url, body="json", part="image_data"),
    "fastapi_server": lambda url: Door(url, body="form", part="file"),
}


@contextmanager
def open_python_server(workload: Workload, *, title: str, module: str, network: str) -> Iterator[Opened]:
    """Starts the module with one of `STEPS`, waits until `/health` answers 200, and ends all of its processes at last.

    Raises:
        BenchError: it ends early, or is not ready in time.
    """
    port, log = _free_port(), workload.scratch / f"{module}-{network}.log"
    command = [sys.executable, "-m", f"{__package__}.{module}", "--port", str(port)]
    command += ["--model", str(workload.model), "--network", network]
    began_s = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    tree = ProcessTree.of(process.pid)
    try:
        _wait_until_healthy(f"http://{HOST}:{port}/health", process, log)
        contestant = HttpContestant(_DOORS[module](f"http://{HOST}:{port}/predict"), workload)
        yield Opened({title: contestant}, process.pid, time.monotonic() - began_s)
    finally:
        tree.stop(_STOP_S)
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _wait_until_healthy(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            words = log.read_text(errors="replace").split()
            raise BenchError(f"it ended with status {process.returncode}: {' '.join(words)[-300:]}")
        try:
            if requests.get(url, timeout=5).ok:
                return
        except requests.RequestException:
            pass  # it does not listen yet
        time.sleep(_POLL_S)
    raise BenchError(f"it is not ready after {READY_S} s")


def server_arguments() -> argparse.Namespace:
    """What `open_python_server` says to a module: `model`, `network` and `port`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--network", choices=STEPS, required=True)
    parser.add_argument("--port", type=int, required=True)
    return parser.parse_args()
