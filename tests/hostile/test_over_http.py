"""Hostile requests over a real socket to real servers: the documented response, by workers that
survive.
"""

import base64
import http.client
import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import NamedTuple

import psutil
import pytest

from bench.machine import forget_peaks, python_peaks_bytes
from segserve.archive import build_archive
from segserve.engines import EngineName
from segserve.engines.torchserve_process import TorchServe
from segserve.gateway.background import Server
from tests.faults.served import TOKEN as SERVED_TOKEN
from tests.faults.served import Served
from tests.unit.tiny import write_tiny_model
from tests.unit.torchserve import Part, Request

from .bodies import IMAGE
from .bombs import MOST_BYTES
from .cases import SEED, all_cases
from .leaks import leaks_of
from .lines import GOOD_PATH, TOKEN, on_the_wire
from .test_poison import workers

DOCUMENTED = {200, 400, 404, 405, 406, 413, 415, 422}
OF_HTTP_ITSELF = {*DOCUMENTED, 411, 414, 417, 426, 431, 501, 505}
EVERY = 1 if os.environ.get("SEGSERVE_HOSTILE") == "all" else 20
PATIENCE_S = 5

# What TorchServe's front end, which is Java, throws at malformed paths and forms. Without the
# gateway in front of it, it responds 500 or 403 in its own words before a worker sees the request
# (docs/hostile-input.md).
THROWN_BY_TORCHSERVE = {
    "ArrayIndexOutOfBoundsException",
    "StringIndexOutOfBoundsException",
    "ErrorDataDecoderException",
    "IllegalArgumentException",
    "UnsupportedCharsetException",
}


CONTAINER = "container"
"""The command of the image: TorchServe and its gateway."""
TORCHSERVE = "torchserve"
"""TorchServe without a gateway."""


class Target(NamedTuple):
    url: str
    token: str
    pid: int
    engine: str


@pytest.fixture(scope="module", params=[TORCHSERVE, EngineName.LOCAL, EngineName.RAY, CONTAINER])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Target]:
    engine = request.param
    if engine == "ray":
        pytest.importorskip("ray.serve", reason="Ray is not installed: pip install 'segserve[ray]'")
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "tiny").mkdir()
    archive = build_archive(write_tiny_model(folder / "tiny"), folder)
    if engine == CONTAINER:
        served = Served(tmp_path_factory.mktemp(engine), archive)
        try:
            yield Target(served.wait_ready().url, SERVED_TOKEN, served.command.process.pid, engine)
        finally:
            served.stop()
        return
    run_dir = tmp_path_factory.mktemp(engine) / "run"
    if engine == TORCHSERVE:
        starting: TorchServe | Server = TorchServe.start([archive], run_dir)
    else:
        starting = Server.start([archive], run_dir, engine=engine)
    with starting as running:
        running.wait_ready(timeout_s=300)
        yield Target(running.inference_url, running.inference_token, running.pid, engine)


def exchanged(server: Target, request: bytes, timeout_s: float = 60) -> tuple[int, bytes] | None:
    """Status and body of the response; None if the server closes without one, or waits for more
    to come.
    """
    with closing(socket.create_connection(server_address(server), timeout=timeout_s)) as connection:
        with suppress(ConnectionError):  # the server stopped reading, and may have responded
            connection.sendall(request.replace(TOKEN.encode(), server.token.encode()))
        try:
            response = http.client.HTTPResponse(connection)
            response.begin()
            return response.status, response.read()
        except (http.client.HTTPException, ConnectionError, TimeoutError):
            return None


def server_address(server: Target) -> tuple[str, int]:
    host, _, port = server.url.removeprefix("http://").partition(":")
    return host, int(port)


def as_http(request: Request) -> bytes | None:
    """A request on the wire; None where it cannot be put there."""
    headers = {
        name: value for name, value in request.headers.items() if name.isascii() and name.strip()
    }
    if any(mark in f"{name}{value}" for name, value in headers.items() for mark in "\r\n\0"):
        return None  # such lines are sent as they are by `on_the_wire`
    if headers.get("Content-Type", "").startswith("multipart/form-data"):
        headers["Content-Type"] = "multipart/form-data; boundary=xyz"
        body = b"".join(
            b'--xyz\r\nContent-Disposition: form-data; name="%s"\r\n'
            % part.name.encode("utf-8", "replace")
            + (b"Content-Type: %s\r\n" % part.content_type.encode() if part.content_type else b"")
            + b"\r\n%s\r\n" % part.content
            for part in request.parts
        )
        body += b"--xyz--\r\n"
    else:
        body = request.parts[0].content
    lines = [f"{name}: {value}" for name, value in headers.items()]
    head = [
        f"POST {GOOD_PATH} HTTP/1.1",
        "Host: 127.0.0.1",
        f"Authorization: Bearer {TOKEN}",
        "Connection: close",
    ]
    return (
        "\r\n".join([*head, *lines, f"Content-Length: {len(body)}", "", ""]).encode(
            "utf-8", "replace"
        )
        + body
    )


def thrown_by_torchserve(server: Target, body: bytes) -> bool:
    found = re.search(rb'"type": "(\w+)"', body)
    return server.engine == TORCHSERVE and bool(found) and found[1].decode() in THROWN_BY_TORCHSERVE


def assert_documented(body: bytes, status: int, name: str) -> None:
    if status in (200, 413) and not body:
        return
    try:
        document = json.loads(body)
    except ValueError:
        assert status != 422, name
        return
    if status >= 400:
        error = document.get("error", document)
        message = error if isinstance(error, str) else error["message"]  # of another protocol
        assert isinstance(message, str), name
        assert not leaks_of(message), (name, error)


def test_hostile_sample_gets_the_documented_response_from_the_same_worker(server):
    before, responded, wrong = workers(server), 0, []
    for case in all_cases(every=EVERY):
        request = as_http(case.make())
        if request is None:
            continue
        got = exchanged(server, request)
        if got is not None and thrown_by_torchserve(server, got[1]):
            continue
        if got is None or got[0] not in DOCUMENTED:
            wrong.append((case.name, got))
            continue
        assert_documented(got[1], got[0], case.name)
        responded += 1
    assert not wrong
    assert responded > 100
    assert workers(server) == before
    assert_good_image_is_served(server)


def test_largest_json_of_tiny_members_is_rejected_in_little_memory(server):
    members = b"{}," * (MOST_BYTES // 3)
    body = b'{"data": "%s", "mask": [%s0]}' % (base64.b64encode(IMAGE), members)
    forget_peaks(server.pid)
    before = python_peaks_bytes(server.pid)
    got = exchanged(
        server, as_http(Request((Part(body, "body"),), {"Content-Type": "application/json"}))
    )
    assert got is not None
    assert got[0] == 400
    assert json.loads(got[1])["error"]["code"] == "bad_json"
    grown = {
        pid: peak - before[pid]
        for pid, peak in python_peaks_bytes(server.pid).items()
        if pid in before
    }
    assert (
        max(grown.values()) < 10 * MOST_BYTES
    )  # its copies on the way; as objects its members would be 1.6 GB


def test_hostile_lines_get_a_response_or_are_disconnected(server):
    before, wrong = workers(server), []
    for name, request in on_the_wire(SEED).items():
        got = exchanged(server, request, timeout_s=PATIENCE_S)
        if got is None or thrown_by_torchserve(server, got[1]):
            continue
        if got[0] not in OF_HTTP_ITSELF:
            wrong.append((name, got))
            continue
        assert_documented(got[1], got[0], name)
        assert not any(
            secret in got[1] for secret in (b"root:", b"api_key", server.token.encode())
        ), name
    assert not wrong
    assert workers(server) == before
    assert_good_image_is_served(server)


def assert_good_image_is_served(server: Target) -> None:
    headers = {"X-Segment-Mask": "none"}
    lines = [
        f"POST {GOOD_PATH} HTTP/1.1",
        "Host: a",
        f"Authorization: Bearer {TOKEN}",
        "Connection: close",
    ]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    request = "\r\n".join([*lines, f"Content-Length: {len(IMAGE)}", "", ""]).encode() + IMAGE
    got = exchanged(server, request)
    assert got is not None
    assert (got[0], json.loads(got[1])["width"]) == (200, 11)
    assert psutil.pid_exists(server.pid)
