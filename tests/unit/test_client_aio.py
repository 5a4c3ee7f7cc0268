"""The asynchronous client against real sockets: the same requests, results and errors as the
synchronous one.
"""

import asyncio
import json

import numpy as np
import pytest

from segserve.client import (
    AsyncSegmentationClient,
    AuthenticationError,
    MalformedResponseError,
    ResponseError,
    SegmentationClient,
    TimedOutError,
    UnreachableError,
)

from .canned import IMAGE_RGB, LABEL_MAP, Canned, as_file, canned_server, response_document

IMAGE = as_file(IMAGE_RGB)
RESPONSE = json.dumps(response_document()).encode()
BUSY = Canned(b'{"error": {"code": "busy", "message": "so it is"}}', 503)
INVALID_TOKEN = Canned(b'{"code": 400, "type": "InvalidKeyException", "message": "Not so."}', 400)


@pytest.fixture
def server():
    with canned_server() as server:
        yield server


def segmented(url, *images, times=1, options=None, **arguments):
    """The results of these images, all requested concurrently."""

    async def run():
        async with AsyncSegmentationClient(url, **arguments) as client:
            return await asyncio.gather(
                *(client.segment(image, **(options or {})) for image in images * times)
            )

    return asyncio.run(run())


def test_segment_returns_the_result_of_the_synchronous_client(server):
    server.response = Canned(RESPONSE, headers={"Server-Timing": "decode;dur=1.5"})
    [of_async] = segmented(server.url, IMAGE)
    with SegmentationClient(server.url) as client:
        of_sync = client.segment(IMAGE)
    assert np.array_equal(of_async.label_map, of_sync.label_map)
    assert of_async.classes == of_sync.classes
    assert of_async.timings_ms == of_sync.timings_ms == {"decode": 1.5}


def test_segment_at_a_loopback_server_does_not_use_the_proxy(server, monkeypatch):
    server.response = Canned(RESPONSE)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    segmented(server.url, IMAGE, token="made up", retries=0)  # noqa: S106
    assert len(server.received) == 1


def test_segment_sends_the_request_of_the_synchronous_client(server):
    options = {"mode": "slide", "classes": ["cat"], "threshold": 0.5, "confidence": True}
    segmented(server.url, IMAGE_RGB, token="made up", model="tiny", version="2.0", options=options)  # noqa: S106
    with SegmentationClient(server.url, token="made up", model="tiny", version="2.0") as client:  # noqa: S106
        client.segment(IMAGE_RGB, **options)
    of_async, of_sync = server.received
    assert (of_async.path, of_async.body) == (of_sync.path, of_sync.body)
    connection_headers = {"host", "connection", "accept-encoding"}
    async_headers, sync_headers = (
        {
            name.lower(): value
            for name, value in received.headers.items()
            if name.lower() not in connection_headers
        }
        for received in (of_async, of_sync)
    )
    assert async_headers == sync_headers


def test_segment_raw_returns_the_body_unchanged(server):
    server.response = Canned(b"\x89picture")

    async def run():
        async with AsyncSegmentationClient(server.url) as client:
            return await client.segment_raw(IMAGE, "image/png")

    assert asyncio.run(run()) == b"\x89picture"
    assert server.received[0].headers["Accept"] == "image/png"


def test_concurrent_segment_opens_at_most_pool_size_connections(server):
    server.response = Canned(RESPONSE, pause_s=0.02)
    results = segmented(server.url, IMAGE, times=24, pool_size=3)
    assert all(np.array_equal(result.label_map, LABEL_MAP) for result in results)
    assert len({received.connection for received in server.received}) <= 3


def test_concurrent_segment_retries_each_request_on_its_own(server):
    server.script = [BUSY] * 8
    assert len(segmented(server.url, IMAGE, times=8, retries=8)) == 8
    assert len(server.received) == 16


@pytest.mark.parametrize(
    "failure", [BUSY, Canned(RESPONSE, breaks=True)], ids=["503", "broken connection"]
)
def test_segment_retries_transient_failures(server, failure):
    server.script = [failure]
    assert np.array_equal(segmented(server.url, IMAGE)[0].label_map, LABEL_MAP)
    assert [received.body for received in server.received] == [IMAGE, IMAGE]


@pytest.mark.parametrize(
    ("response", "error", "message"),
    [
        (
            INVALID_TOKEN,
            AuthenticationError,
            "400 InvalidKeyException: Not so",
        ),
        (
            Canned(b"", 301, {"Location": "https://elsewhere/"}),
            ResponseError,
            "the server redirects to 'https://elsewhere/'",
        ),
        (Canned(b"<html>"), MalformedResponseError, "not a segmentation"),
    ],
    ids=["token", "redirect", "html"],
)
def test_segment_raises_a_permanent_failure_without_retries(server, response, error, message):
    server.response = response
    with pytest.raises(error, match=message):
        segmented(server.url, IMAGE)
    assert len(server.received) == 1


def test_segment_does_not_retry_after_a_timeout(server):
    server.response = Canned(RESPONSE, pause_s=1.5)
    with pytest.raises(TimedOutError, match=r"no response within 0.5 s"):
        segmented(server.url, IMAGE, timeout_s=0.5)
    assert len(server.received) == 1


def test_segment_without_a_server_raises_unreachable_and_names_the_address(silent_url):
    with pytest.raises(
        UnreachableError, match=rf"^{silent_url}: no server responds there \(Connection refused\)"
    ):
        segmented(silent_url, IMAGE, retries=0)


def test_client_invalid_address_raises():
    with pytest.raises(ValueError, match="expected a server's address"):
        AsyncSegmentationClient("127.0.0.1")
