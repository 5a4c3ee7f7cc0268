"""The process that sends the requests: a closed loop, in which each client sends its next request
after the response.

`send_requests` starts it; arguments and results are JSON on its standard input and output. The
clients are threads with `http.client`, which need the least CPU time. On one machine, the clients'
CPU time is lost for the server.
"""

import base64
import http.client
import json
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from urllib3.filepost import encode_multipart_formdata

from .figures import Run
from .peer import BenchError, Workload

BodyKind = Literal["file", "form", "json"]

TIMEOUT_S = 300.0
_WARM_UP_CLIENTS = 4  # to reach every worker of a server
_WARM_UP_REPEATS = 2


@dataclass(frozen=True)
class Gateway:
    """A server's endpoint for images, and its request format.

    Attributes:
        body: `file`: the image's bytes. `form`: a multipart form with one part. `json`: an object
            with a base64 member.
        part: name of the part or the member.
    """

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: BodyKind = "file"
    part: str = "file"
    ca_file: str | None = None


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
    """Sends image files in order from a separate process.

    Args:
        max_s: no request starts later than this many seconds after the first.
        timeout_s: time limit of a response.

    Raises:
        BenchError: the process failed. No response of a server causes this.
    """
    order = {
        "gateway": asdict(gateway),
        "images": [str(image) for image in images],
        "clients": clients,
        "max_s": max_s,
        "timeout_s": timeout_s,
    }
    done = subprocess.run(
        [sys.executable, "-m", "bench.serving.load"],
        input=json.dumps(order),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise BenchError(
            f"the process that sends requests failed: {' '.join(done.stderr.splitlines()[-1:])}"
        )
    fields = json.loads(done.stdout)
    return Run(**{**fields, "latencies_s": tuple(fields["latencies_s"])})


def send_all(gateway: Gateway, images: Sequence[Path], *, clients: int) -> Run:
    """As `send_requests`, but no request may fail.

    Raises:
        BenchError: a request failed.
    """
    run = send_requests(gateway, images, clients=clients)
    if run.failures:
        raise BenchError(f"{run.failures} of {len(images)} images failed: {run.reason}")
    return run


class ClosedLoop:
    """Clients that share one queue of requests. Their threads wait for sockets most of the time."""

    def __init__(
        self, gateway: Gateway, images: Sequence[str], clients: int, max_s: float, timeout_s: float
    ) -> None:
        self._gateway, self._clients = gateway, clients
        self._max_s, self._timeout_s = max_s, timeout_s
        requests = {image: _request(gateway, Path(image).read_bytes()) for image in set(images)}
        self._queue = iter([requests[image] for image in images])
        self._turn = threading.Lock()
        self._latencies_s: list[float] = []
        self._failures: list[str] = []
        self._began_s = 0.0

    def run(self) -> Run:
        clients = [threading.Thread(target=self._client) for _ in range(self._clients)]
        self._began_s = time.perf_counter()
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        wall_s = time.perf_counter() - self._began_s
        return Run(
            tuple(self._latencies_s), wall_s, len(self._failures), next(iter(self._failures), "")
        )

    def _client(self) -> None:
        connection = _connection(self._gateway, self._timeout_s)
        path = urlsplit(self._gateway.url).path
        for body, headers in self._mine():
            began_s = time.perf_counter()
            failure = _exchange(connection, path, body, headers)
            if failure is None:
                self._latencies_s.append(time.perf_counter() - began_s)
            else:
                self._failures.append(failure)
        connection.close()

    def _mine(self) -> Iterator[tuple[bytes, dict[str, str]]]:
        """The requests of one client, until the queue is empty or the time limit is reached."""
        while time.perf_counter() - self._began_s < self._max_s:
            with self._turn:
                request = next(self._queue, None)
            if request is None:
                return
            yield request


def _connection(gateway: Gateway, timeout_s: float) -> http.client.HTTPConnection:
    parts = urlsplit(gateway.url)
    host, port = parts.hostname or "", parts.port
    if parts.scheme == "https":
        context = ssl.create_default_context(cafile=gateway.ca_file)
        return http.client.HTTPSConnection(host, port, timeout=timeout_s, context=context)
    return http.client.HTTPConnection(host, port, timeout=timeout_s)


def _request(gateway: Gateway, content: bytes) -> tuple[bytes, dict[str, str]]:
    """The body and the headers of the request for one image file."""
    if gateway.body == "form":
        body, content_type = encode_multipart_formdata(
            {gateway.part: ("image.jpg", content, "image/jpeg")}
        )
    elif gateway.body == "json":
        body, content_type = (
            json.dumps({gateway.part: base64.b64encode(content).decode()}).encode(),
            "application/json",
        )
    else:
        body, content_type = content, "application/octet-stream"
    return body, {"Content-Type": content_type, **gateway.headers}


def _exchange(
    connection: http.client.HTTPConnection, path: str, body: bytes, headers: dict[str, str]
) -> str | None:
    """Sends one request and reads the response. Returns the reason of a failure, or None."""
    try:
        connection.request("POST", path, body, headers)
        response = connection.getresponse()
        content = response.read()
    except (OSError, http.client.HTTPException) as error:
        connection.close()  # the next request reopens it
        return f"{type(error).__name__}: {error}"
    if response.status != http.HTTPStatus.OK:
        return (
            f"status {response.status}: {' '.join(content[:200].decode(errors='replace').split())}"
        )
    return None if content else "an empty response"


def main() -> None:
    order = json.load(sys.stdin)
    gateway = Gateway(**order.pop("gateway"))
    json.dump(asdict(ClosedLoop(gateway, **order).run()), sys.stdout)


if __name__ == "__main__":
    main()
