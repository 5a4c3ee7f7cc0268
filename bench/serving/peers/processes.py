"""Servers as processes: the container's command, and Python modules of this folder."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests

from segserve.engines.processes import ProcessTree

from ..load import Gateway, HttpPeer
from ..peer import BenchError, Opened, Workload

HOST = "127.0.0.1"
READY_S = 600
_POLL_S = 0.25
_STOP_S = 90


@contextmanager
def running(
    command: Sequence[str],
    log: Path,
    health_url: str,
    *,
    environment: Mapping[str, str] | None = None,
    ca_file: Path | None = None,
) -> Iterator[int]:
    """Runs a command within the context. Yields its process id when its health URL responds with
    200; `ca_file` is the CA certificate for https. Raises BenchError if it exits early, or is not
    ready in time.
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


@contextmanager
def running_container(
    archive: Path, token_file: Path, folder: Path, **settings: str
) -> Iterator[tuple[str, int]]:
    """Runs the container's command, `python -m segserve.gateway`, within the context, with other
    SEGSERVE_ variables, without this prefix. Yields its URL and its process id. The log is
    `folder/container.log`. Raises as `running`.
    """
    port = free_port()
    own = {"ARCHIVE": archive, "TOKEN_FILE": token_file, "RUN_DIR": folder / "run", "HOST": HOST}
    own |= {"PORT": port, "METRICS_PORT": free_port(), **settings}
    others = {name: value for name, value in os.environ.items() if not name.startswith("SEGSERVE_")}
    environment = others | {f"SEGSERVE_{name}": str(value) for name, value in own.items()}
    url, command = f"http://{HOST}:{port}", [sys.executable, "-m", "segserve.gateway"]
    with running(command, folder / "container.log", f"{url}/ping", environment=environment) as pid:
        yield url, pid


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _wait_until_healthy(
    url: str, process: subprocess.Popen[bytes], log: Path, verify: bool | str
) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            words = log.read_text(errors="replace").split()
            raise BenchError(f"it ended with status {process.returncode}: {' '.join(words)[-300:]}")
        try:
            if requests.get(url, timeout=5, verify=verify).ok:
                return
        except requests.RequestException:
            pass  # not listening yet
        time.sleep(_POLL_S)
    raise BenchError(f"it is not ready after {READY_S} s")


@contextmanager
def open_python_server(
    workload: Workload, *, title: str, module: str, network: str, request: dict[str, Any]
) -> Iterator[Opened]:
    """Starts the module with one of `STEPS`; `request` is its format. Raises as `running`."""
    port = free_port()
    command = [sys.executable, "-m", f"{__package__}.{module}"]
    command += [str(workload.model), network, str(port)]
    began_s = time.monotonic()
    with running(
        command, workload.scratch / f"{module}-{network}.log", f"http://{HOST}:{port}/health"
    ) as pid:
        peer = HttpPeer(Gateway(f"http://{HOST}:{port}/predict", **request), workload)
        yield Opened({title: peer}, pid, time.monotonic() - began_s)
