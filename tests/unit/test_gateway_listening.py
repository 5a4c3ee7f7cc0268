"""What the door's port says before any application of ours sees the request."""

import asyncio
import logging

import pytest
from aiohttp import web

from segserve.gateway.listening import bind, listening


async def answer_to(request: bytes) -> bytes:
    taken = bind("127.0.0.1", 0, "SEGSERVE_PORT")
    async with listening([(web.Application(), taken)], drain_timeout_s=1, late_request_s=0):
        reader, writer = await asyncio.open_connection(*taken.getsockname())
        writer.write(request)
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
    return answer


@pytest.mark.parametrize(
    "request_bytes",
    [
        pytest.param(b"GARBAGE\r\n\r\n", id="no-http"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: one\r\n\r\n", id="header"),
        pytest.param(
            b"GET / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            id="two-lengths",
        ),
        pytest.param(b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", id="long-line"),
    ],
)
def test_listening_malformed_request_is_400_without_a_version(request_bytes):
    answer = asyncio.run(answer_to(request_bytes))
    assert answer.startswith(b"HTTP/1.0 400 Bad Request\r\n")
    assert b"\r\nServer: segserve\r\n" in answer
    assert b"aiohttp" not in answer
    assert b"Traceback" not in answer


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(b"Authorization: Bearer a-secret-token\x00", id="sign"),
        pytest.param(b"Authorization Bearer: a-secret-token", id="name"),
        pytest.param(b"Authorization: Bearer a-secret-token" + b"x" * 9000, id="long"),
    ],
)
def test_listening_malformed_header_with_a_token_is_logged_in_a_line_without_it(line, caplog):
    caplog.set_level(logging.INFO)
    answer = asyncio.run(answer_to(b"GET / HTTP/1.1\r\nHost: x\r\n" + line + b"\r\n\r\n"))
    assert answer.startswith(b"HTTP/1.0 400 Bad Request\r\n")
    assert caplog.messages == ["400: no HTTP, from 127.0.0.1"]
    assert "a-secret-token" not in caplog.text
    assert "Traceback" not in caplog.text
