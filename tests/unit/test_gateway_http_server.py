"""Requests that the HTTP server rejects before the gateway sees them."""

import asyncio
import json
import logging
import re
import statistics
import time

import pytest

from segserve.gateway.app import Gateway
from segserve.gateway.http_server import bind, serving
from segserve.gateway.settings import GatewaySettings


async def response_to(request: bytes) -> bytes:
    listener = bind("127.0.0.1", 0, "SEGSERVE_PORT")
    gateway = Gateway(
        token=None, management_token=None, settings=GatewaySettings(), max_request_bytes=1
    )
    apps = {listener: gateway.inference_app()}
    async with serving(apps, drain_timeout_s=1, late_request_s=0):
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        writer.write(request)
        writer.write_eof()
        response = await asyncio.wait_for(reader.read(), 10)
        writer.close()
    return response


@pytest.mark.parametrize(
    "request_bytes",
    [
        pytest.param(b"GARBAGE\r\n\r\n", id="not-http"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: one\r\n\r\n", id="header"),
        pytest.param(
            b"GET / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            id="two-lengths",
        ),
        pytest.param(b"GET /" + b"a" * 20000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", id="long-line"),
    ],
)
def test_listening_malformed_request_is_400_without_a_version(request_bytes):
    response = asyncio.run(response_to(request_bytes))
    head, _, body = response.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert json.loads(body)["error"]["code"] == "bad_request"
    assert not [name for name in (b"uvicorn", b"h11", b"Traceback") if name in response]


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(b"Authorization: Bearer a-secret-token\x00", id="sign"),
        pytest.param(b"Authorization Bearer: a-secret-token", id="name"),
        pytest.param(b"Authorization: Bearer a-secret-token" + b"x" * 20000, id="long"),
    ],
)
def test_listening_malformed_header_with_a_token_is_logged_in_a_line_without_it(line, caplog):
    caplog.set_level(logging.INFO)
    response = asyncio.run(response_to(b"GET / HTTP/1.1\r\nHost: x\r\n" + line + b"\r\n\r\n"))
    assert response.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert len(caplog.messages) == 1
    assert "a-secret-token" not in caplog.text
    assert "Traceback" not in caplog.text


def test_listening_sends_the_body_without_waiting_for_the_acknowledgement_of_the_headers():
    """Without TCP_NODELAY, Nagle's algorithm and delayed acknowledgements add 40 ms."""

    async def durations_s() -> list[float]:
        listener = bind("127.0.0.1", 0, "SEGSERVE_PORT")
        gateway = Gateway(
            token=None, management_token=None, settings=GatewaySettings(), max_request_bytes=1
        )
        durations = []
        async with serving({listener: gateway.inference_app()}, drain_timeout_s=1):
            reader, writer = await asyncio.open_connection(*listener.getsockname())
            for _ in range(30):
                began_s = time.perf_counter()
                writer.write(b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n")
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(re.search(rb"(?i)content-length: (\d+)", head)[1]))
                durations.append(time.perf_counter() - began_s)
            writer.close()
        return durations

    assert statistics.median(asyncio.run(durations_s())) < 0.03
