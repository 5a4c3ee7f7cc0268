"""A peer with an HTTP server. The clients run in a separate process."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from .errors import BenchError
from .figures import Run
from .load import Gateway, Order
from .workload import Workload

TIMEOUT_S = 300.0
_WARM_UP_CLIENTS = 4  # to reach every worker of a server
_WARM_UP_REPEATS = 2


@dataclass(frozen=True)
class HttpPeer:
    gateway: Gateway
    workload: Workload

    def warm_up(self) -> None:
        run = send_requests(
            self.gateway, self.workload.warm_up * _WARM_UP_REPEATS, clients=_WARM_UP_CLIENTS
        )
        if run.failures:
            raise BenchError(f"{run.failures} of the first images failed: {run.reason}")

    def run(self, clients: int) -> Run:
        return send_requests(
            self.gateway, self.workload.requests, clients=clients, max_s=self.workload.max_s
        )


def send_requests(
    gateway: Gateway,
    images: Sequence[Path],
    *,
    clients: int,
    max_s: float = TIMEOUT_S,
    timeout_s: float = TIMEOUT_S,
) -> Run:
    """Sends image files in order from a separate process; see `Order`.

    Raises:
        BenchError: the process failed. No response of a server causes this.
    """
    order = Order(gateway, tuple(map(str, images)), clients, max_s, timeout_s)
    command = [sys.executable, "-m", "bench.serving.load"]
    done = subprocess.run(
        command, input=json.dumps(asdict(order)), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise BenchError(
            f"the process that sends requests failed: {' '.join(done.stderr.splitlines()[-1:])}"
        )
    response = json.loads(done.stdout)
    return Run(**{**response, "latencies_s": tuple(response["latencies_s"])})
