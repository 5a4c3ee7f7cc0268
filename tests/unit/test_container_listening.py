"""What the door's port says before any application of ours sees the request."""

import asyncio

import pytest
from aiohttp import web

from segserve.container.listening import bind, listening


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
        pytest.param(b"GET / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", id="two-lengths"),
        pytest.param(b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", id="long-line"),
    ],
)
def test_listening_malformed_request_is_400_without_a_version(request_bytes):
    answer = asyncio.run(answer_to(request_bytes))
    assert answer.startswith(b"HTTP/1.0 400 Bad Request\r\n")
    assert b"\r\nServer: segserve\r\n" in answer
    assert b"aiohttp" not in answer
    assert b"Traceback" not in answer
