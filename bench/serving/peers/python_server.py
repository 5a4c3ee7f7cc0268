"""Runs a server that is a Python module, `python -m bench.serving.peers.MODULE --port ...`, on a
free port.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ..load import Gateway, HttpPeer
from ..peer import Opened
from ..workload import Workload
from .processes import HOST, free_port, running
from .steps import STEPS

# The request format of each module, as in its framework's documentation.
_GATEWAYS: Mapping[str, Callable[[str], Gateway]] = {
    "litserve_server": lambda url: Gateway(url, body="json", part="image_data"),
    "fastapi_server": lambda url: Gateway(url, body="form", part="file"),
}


@contextmanager
def open_python_server(
    workload: Workload, *, title: str, module: str, network: str
) -> Iterator[Opened]:
    """Starts the module with one of `STEPS` and waits until `/health` responds with 200. Ends its
    process tree later.

    Raises:
        BenchError: the server exits early, or is not ready in time.
    """
    port = free_port()
    command = [sys.executable, "-m", f"{__package__}.{module}", "--port", str(port)]
    command += ["--model", str(workload.model), "--network", network]
    began_s = time.monotonic()
    with running(
        command, workload.scratch / f"{module}-{network}.log", f"http://{HOST}:{port}/health"
    ) as pid:
        peer = HttpPeer(_GATEWAYS[module](f"http://{HOST}:{port}/predict"), workload)
        yield Opened({title: peer}, pid, time.monotonic() - began_s)


def server_arguments() -> argparse.Namespace:
    """The module's command line arguments from `open_python_server`: `model`, `network` and
    `port`.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--network", choices=STEPS, required=True)
    parser.add_argument("--port", type=int, required=True)
    return parser.parse_args()
