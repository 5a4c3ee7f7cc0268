"""The process that sends the requests: a closed loop, in which each client sends its next request
after the response.

`send_requests` starts it; arguments and results are JSON on its standard input and output. The
clients use `http.client`, because their CPU time is lost for a server on the same machine.
"""

import base64
import http.client
import json
import math
import ssl
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
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
        send_all(self.gateway, self.workload.warm_up * 2, clients=_WARM_UP_CLIENTS)

    def run(self, clients: int) -> Run:
        return send_requests(
            self.gateway, self.workload.requests, clients=clients, max_s=self.workload.max_s
        )


def send_requests(
    gateway: Gateway, images: Sequence[Path], *, clients: int, max_s: float = math.inf
) -> Run:
    """Sends image files in order from a separate process. No request starts later than `max_s`
    after the first. Raises BenchError if the process fails, whatever a server responds.
    """
    order = {
        "gateway": asdict(gateway),
        "images": [str(image) for image in images],
        "clients": clients,
        "max_s": max_s,
    }
    done = subprocess.run(
        [sys.executable, "-m", "bench.serving.load"],
        input=json.dumps(order),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise BenchError(f"the process that sends requests failed: {done.stderr[-300:]}")
    fields = json.loads(done.stdout)
    return Run(**{**fields, "latencies_s": tuple(fields["latencies_s"])})


def send_all(gateway: Gateway, images: Sequence[Path], *, clients: int) -> Run:
    """As `send_requests`, but raises BenchError if a request fails."""
    run = send_requests(gateway, images, clients=clients)
    if run.failures:
        raise BenchError(f"{run.failures} of {len(images)} images failed: {run.reason}")
    return run


def closed_loop(gateway: Gateway, images: Sequence[str], clients: int, max_s: float) -> Run:
    """Clients that share one queue of requests. Their threads wait for sockets most of the time."""
    requests = {image: _request(gateway, Path(image).read_bytes()) for image in set(images)}
    queue = iter([requests[image] for image in images])
    path = urlsplit(gateway.url).path
    latencies_s: list[float] = []
    failures: list[str] = []

    def client(_number: int) -> None:
        connection = _connection(gateway)
        for body, headers in queue:  # threads may share the iterator of a list
            sent_s = time.perf_counter()
            if sent_s - began_s >= max_s:
                break
            failure = _exchange(connection, path, body, headers)
            if failure is None:
                latencies_s.append(time.perf_counter() - sent_s)
            else:
                failures.append(failure)
        connection.close()

    began_s = time.perf_counter()
    with ThreadPoolExecutor(clients) as threads:
        list(threads.map(client, range(clients)))  # raises what a client raised
    wall_s = time.perf_counter() - began_s
    return Run(tuple(latencies_s), wall_s, len(failures), failures[0] if failures else "")


def _connection(gateway: Gateway) -> http.client.HTTPConnection:
    parts = urlsplit(gateway.url)
    host, port = parts.hostname or "", parts.port
    if parts.scheme == "https":
        context = ssl.create_default_context(cafile=gateway.ca_file)
        return http.client.HTTPSConnection(host, port, timeout=TIMEOUT_S, context=context)
    return http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)


def _request(gateway: Gateway, content: bytes) -> tuple[bytes, dict[str, str]]:
    """The body and the headers of the request for one image file."""
    if gateway.body == "form":
        body, content_type = encode_multipart_formdata(
            {gateway.part: ("image.jpg", content, "image/jpeg")}
        )
    elif gateway.body == "json":
        body = json.dumps({gateway.part: base64.b64encode(content).decode()}).encode()
        content_type = "application/json"
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
        said = content[:200].decode(errors="replace")
        return f"status {response.status}: {' '.join(said.split())}"
    return None if content else "an empty response"


def main() -> None:
    order = json.load(sys.stdin)
    gateway = Gateway(**order.pop("gateway"))
    json.dump(asdict(closed_loop(gateway, **order)), sys.stdout)


if __name__ == "__main__":
    main()
