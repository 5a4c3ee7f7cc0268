"""The client to await against real sockets: the same requests, answers and errors as the one that
waits.
"""

import asyncio
import json
import subprocess
import sys

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

from .canned import IMAGE_RGB, LABEL_MAP, Canned, answer_document, as_file, canned_server

IMAGE = as_file(IMAGE_RGB)
ANSWER = json.dumps(answer_document()).encode()
BUSY = Canned(b'{"error": {"code": "busy", "message": "so it is"}}', 503)
TOKEN_REFUSED = Canned(b'{"code": 400, "type": "InvalidKeyException", "message": "Not so."}', 400)


@pytest.fixture
def server():
    with canned_server() as server:
        yield server


def segmented(url, *images, times=1, options=None, **arguments):
    """What `segment` gives of these images, all asked for at once."""

    async def run():
        async with AsyncSegmentationClient(url, **arguments) as client:
            return await asyncio.gather(
                *(client.segment(image, **(options or {})) for image in images * times)
            )

    return asyncio.run(run())


def test_segment_gives_what_the_waiting_client_gives(server):
    server.answer = Canned(ANSWER, headers={"Server-Timing": "decode;dur=1.5"})
    [awaited] = segmented(server.url, IMAGE)
    with SegmentationClient(server.url) as client:
        waited = client.segment(IMAGE)
    assert np.array_equal(awaited.label_map, waited.label_map)
    assert awaited.classes == waited.classes
    assert awaited.timings_ms == waited.timings_ms == {"decode": 1.5}


def test_segment_at_this_machine_tells_no_proxy_its_token(server, monkeypatch):
    server.answer = Canned(ANSWER)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    segmented(server.url, IMAGE, token="made up", retries=0)  # noqa: S106
    assert len(server.received) == 1


def test_segment_sends_what_the_waiting_client_sends(server):
    options = {"mode": "slide", "classes": ["cat"], "threshold": 0.5, "confidence": True}
    segmented(server.url, IMAGE_RGB, token="made up", model="tiny", version="2.0", options=options)  # noqa: S106
    with SegmentationClient(server.url, token="made up", model="tiny", version="2.0") as client:  # noqa: S106
        client.segment(IMAGE_RGB, **options)
    awaited, waited = server.received
    assert (awaited.path, awaited.body) == (waited.path, waited.body)
    of_the_connection = {"host", "connection", "accept-encoding"}
    awaited_headers, waited_headers = (
        {
            name.lower(): value
            for name, value in received.headers.items()
            if name.lower() not in of_the_connection
        }
        for received in (awaited, waited)
    )
    assert awaited_headers == waited_headers


def test_segment_raw_returns_the_body_unchanged(server):
    server.answer = Canned(b"\x89picture")

    async def run():
        async with AsyncSegmentationClient(server.url) as client:
            return await client.segment_raw(IMAGE, "image/png")

    assert asyncio.run(run()) == b"\x89picture"
    assert server.received[0].headers["Accept"] == "image/png"


def test_segment_many_at_once_use_no_more_connections_than_the_pool(server):
    server.answer = Canned(ANSWER, pause_s=0.02)
    answers = segmented(server.url, IMAGE, times=24, pool_size=3)
    assert all(np.array_equal(answer.label_map, LABEL_MAP) for answer in answers)
    assert len({received.connection for received in server.received}) <= 3


def test_segment_many_at_once_each_have_retries_of_their_own(server):
    server.script = [BUSY] * 8
    assert len(segmented(server.url, IMAGE, times=8, retries=8)) == 8
    assert len(server.received) == 16


@pytest.mark.parametrize(
    "failure", [BUSY, Canned(ANSWER, breaks=True)], ids=["503", "broken connection"]
)
def test_segment_transient_failure_is_asked_again(server, failure):
    server.script = [failure]
    assert np.array_equal(segmented(server.url, IMAGE)[0].label_map, LABEL_MAP)
    assert [received.body for received in server.received] == [IMAGE, IMAGE]


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (
            TOKEN_REFUSED,
            AuthenticationError,
            "400 InvalidKeyException: Not so; `segserve serve` prints a new one",
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
def test_segment_failure_that_stays_is_raised_at_once(server, answer, error, message):
    server.answer = answer
    with pytest.raises(error, match=message):
        segmented(server.url, IMAGE)
    assert len(server.received) == 1


def test_segment_answer_too_late_is_not_asked_again(server):
    server.answer = Canned(ANSWER, pause_s=1.5)
    with pytest.raises(TimedOutError, match=r"no response within 0.5 s"):
        segmented(server.url, IMAGE, timeout_s=0.5)
    assert len(server.received) == 1


def test_segment_no_server_raises_unreachable_and_names_the_address(silent_url):
    with pytest.raises(
        UnreachableError, match=rf"^{silent_url}: no server responds there \(Connection refused\)"
    ):
        segmented(silent_url, IMAGE, retries=0)


def test_client_address_that_is_none_raises():
    with pytest.raises(ValueError, match="expected a server's address"):
        AsyncSegmentationClient("127.0.0.1")


def test_client_without_httpx_says_how_to_install_it():
    code = """
        import sys
        sys.modules["httpx"] = None
        from segserve.client import AsyncSegmentationClient
        try:
            AsyncSegmentationClient("http://127.0.0.1:8080")
        except ImportError as error:
            print(error)
    """
    lines = [line[8:] for line in code.splitlines()]
    result = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "pip install 'segserve[async]'" in result.stdout
