"""The synchronous client against real sockets: its requests, results, errors and retries."""

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from segserve.client import (
    AuthenticationError,
    MalformedResponseError,
    ResponseError,
    SegmentationClient,
    TimedOutError,
    UnknownModelError,
    UnreachableError,
)

from .canned import IMAGE_RGB, LABEL_MAP, Canned, as_file, canned_server, response_document

IMAGE = as_file(IMAGE_RGB)
RESPONSE = json.dumps(response_document()).encode()


@pytest.fixture
def server():
    with canned_server() as server:
        yield server


@pytest.fixture
def client(server):
    with SegmentationClient(server.url, token="made up", model="tiny", timeout_s=30) as client:  # noqa: S106
        yield client


def error_of_handler(code: str, status: int = 400, **headers) -> Canned:
    return Canned(
        json.dumps({"error": {"code": code, "message": "so it is"}}).encode(), status, headers
    )


def error_of_torchserve(kind: str, status: int) -> Canned:
    return Canned(json.dumps({"code": status, "type": kind, "message": "Not so."}).encode(), status)


def test_segment_returns_label_map_classes_and_timings(server, client):
    server.response = Canned(
        RESPONSE,
        headers={"Server-Timing": 'decode;dur=1.25, inference;dur=70.00;desc="2.0 passes"'},
    )
    segmentation = client.segment(IMAGE)
    assert segmentation.label_map.dtype == np.uint8
    assert np.array_equal(segmentation.label_map, LABEL_MAP)
    assert not segmentation.label_map.flags.writeable
    assert [(row.id, row.label, row.pixels) for row in segmentation.classes] == [
        (0, "background", 17), (2, "dog", 6), (1, "cat", 1)
    ]  # fmt: skip
    assert segmentation.classes[1].box_xyxy == (2, 1, 5, 3)
    assert (segmentation.model, segmentation.model_version) == ("tiny", "1.0")
    assert segmentation.timings_ms == {"decode": 1.25, "inference": 70.0}
    assert segmentation.confidence_map is None


def test_segment_sends_file_options_and_token(server, client):
    client.segment(
        IMAGE, mode="slide", tta=None, classes=["cat", 2], threshold=0.5, confidence=True
    )
    [received] = server.received
    assert (received.path, received.body) == ("/predictions/tiny", IMAGE)
    assert received.headers["Authorization"] == "Bearer made up"
    assert received.headers["Accept"] == "application/json"
    assert received.headers["Content-Type"] == "application/octet-stream"
    assert received.headers["User-Agent"].startswith("segserve/")
    options = {
        name: value for name, value in received.headers.items() if name.startswith("X-Segment-")
    }
    assert options == {
        "X-Segment-Mask": "png",
        "X-Segment-Mode": "slide",
        "X-Segment-Classes": '["cat", 2]',
        "X-Segment-Threshold": "0.5",
        "X-Segment-Confidence": "true",
    }


@pytest.mark.parametrize(
    ("classes", "sent"),
    [
        ("cat,dog", '["cat", "dog"]'),
        (2, "[2]"),
        (np.uint8([1, 2]), "[1, 2]"),
        (["café, au lait"], '["caf\\u00e9, au lait"]'),
    ],
    ids=["commas", "one id", "array", "comma and accent in a label"],
)
def test_segment_sends_classes_as_ascii_json(server, client, classes, sent):
    client.segment(IMAGE, classes=classes)
    assert server.received[0].headers["X-Segment-Classes"] == sent


def test_segment_option_with_invalid_characters_raises(server, client):
    with pytest.raises(ValueError, match="option mode: expected plain ASCII"):
        client.segment(IMAGE, mode="whole\r\nAuthorization: x")
    assert server.received == []


def test_segment_option_that_does_not_exist_raises(server, client):
    with pytest.raises(TypeError, match="unexpected options: quality"):
        client.segment(IMAGE, quality=9)
    assert server.received == []


def test_client_without_token_sends_none_and_accepts_a_trailing_slash(
    server, monkeypatch, tmp_path
):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login someone password else\n")
    monkeypatch.setenv("NETRC", str(netrc))
    with SegmentationClient(f"{server.url}/", version="2.0") as client:
        client.segment(IMAGE)
    [received] = server.received
    assert received.path == "/predictions/deeplabv3/2.0"
    assert "Authorization" not in received.headers


def test_client_of_a_loopback_server_does_not_use_the_proxy(server, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with SegmentationClient(server.url, token="made up", retries=0) as client:  # noqa: S106
        client.segment(IMAGE)
    assert len(server.received) == 1


def test_client_reuses_one_connection(server, client):
    for _ in range(3):
        client.segment(IMAGE)
    assert len({received.connection for received in server.received}) == 1


def test_client_of_many_threads_opens_at_most_pool_size_connections(server):
    server.response = Canned(RESPONSE, pause_s=0.02)
    with SegmentationClient(server.url, pool_size=3) as client, ThreadPoolExecutor(8) as threads:
        results = list(threads.map(client.segment, [IMAGE] * 24))
    assert all(np.array_equal(result.label_map, LABEL_MAP) for result in results)
    assert len({received.connection for received in server.received}) <= 3


def test_segment_raw_returns_the_body_unchanged(server, client):
    server.response = Canned(b"\x89picture")
    assert client.segment_raw(IMAGE, "image/png") == b"\x89picture"
    assert server.received[0].headers["Accept"] == "image/png"
    assert "X-Segment-Mask" not in server.received[0].headers


def test_segment_raw_sends_the_encoding(server, client):
    assert client.segment_raw(IMAGE, mask="rle") == RESPONSE
    assert server.received[0].headers["X-Segment-Mask"] == "rle"


@pytest.mark.parametrize(
    ("status", "body", "code", "message"),
    [
        (422, b'{"error": {"code": "image_truncated", "message": "send\\nit"}}', "image_truncated", "send it"),  # noqa: E501
        (502, b"<html>Bad Gateway</html>", "unknown", "Bad Gateway"),
        (413, b"", "request_too_large", "the server takes no request of so many bytes; .*max_request_size"),  # noqa: E501
        (500, b'{"error": "it broke"}', "unknown", "Internal Server Error"),
        (500, b'{"error": null}', "unknown", "Internal Server Error"),
        (500, b'{"error": {}}', "unknown", "Internal Server Error"),
        (500, b"[1, 2]", "unknown", "Internal Server Error"),
        (500, b'"text"', "unknown", "Internal Server Error"),
        (500, b"\xff\xfe", "unknown", "Internal Server Error"),
        (204, b"", "unknown", "No Content"),
    ],
    ids=["handler", "html", "too large", "text", "null", "empty", "list", "string", "no utf-8", "no content"],  # noqa: E501
)  # fmt: skip
def test_segment_error_response_has_status_code_and_message(
    server, client, status, body, code, message
):
    server.response = Canned(body, status)
    with pytest.raises(ResponseError, match=f"^{status} {code}: {message}$") as caught:
        client.segment(IMAGE)
    assert (caught.value.status, caught.value.code) == (status, code)
    assert len(server.received) == 1


@pytest.mark.parametrize(
    ("kind", "status", "error", "advice"),
    [
        (
            "InvalidKeyException",
            400,
            AuthenticationError,
            "Not so; `segserve serve` prints a new one",
        ),
        ("ModelNotFoundException", 404, UnknownModelError, "Not so; name the model that is served"),
        ("ModelVersionNotFoundException", 404, UnknownModelError, "Not so; leave the version out"),
    ],
    ids=["token", "model", "version"],
)
def test_segment_error_of_torchserve_says_what_to_do(server, client, kind, status, error, advice):
    server.response = error_of_torchserve(kind, status)
    with pytest.raises(error, match=f"^{status} {kind}: {advice}"):
        client.segment(IMAGE)


@pytest.mark.parametrize("status", [401, 403, 404, 405])
def test_segment_error_of_another_server_says_to_check_the_address(server, client, status):
    server.response = Canned(b"<html>nginx</html>", status)
    with pytest.raises(
        ResponseError,
        match="this is not a segmentation server: check the add",
    ):
        client.segment(IMAGE)


def test_segment_redirect_raises_and_names_the_location(server, client):
    server.response = Canned(b"", 301, {"Location": "https://elsewhere/"})
    with pytest.raises(
        ResponseError, match=r"301 unknown: Moved Permanently; .* redirects to 'https://elsewhere/'"
    ):
        client.segment(IMAGE)


@pytest.mark.parametrize(
    "failure",
    [
        error_of_handler("busy", 503),
        error_of_handler("out_of_memory", 507),
        error_of_torchserve("InternalServerException", 500),
        Canned(RESPONSE, breaks=True),
    ],
    ids=["503", "507", "worker died", "broken connection"],
)
def test_segment_retries_transient_failures(server, client, failure):
    server.script = [failure]
    assert np.array_equal(client.segment(IMAGE).label_map, LABEL_MAP)
    assert [received.body for received in server.received] == [IMAGE, IMAGE]


def test_segment_raises_a_permanent_failure_after_the_retries(server):
    server.response = error_of_handler("busy", 503)
    with (
        SegmentationClient(server.url, retries=2) as client,
        pytest.raises(ResponseError, match="503 busy"),
    ):
        client.segment(IMAGE)
    assert len(server.received) == 3


def test_segment_waits_for_the_time_in_retry_after(server, client):
    server.script = [error_of_handler("busy", 503, **{"Retry-After": "1"})]
    began_s = time.monotonic()
    client.segment(IMAGE)
    assert 0.9 <= time.monotonic() - began_s < 5


@pytest.mark.parametrize(
    "value", ["soon", "", "-3", "Sat, 29 Nov"], ids=["word", "empty", "negative", "date"]
)
def test_segment_invalid_retry_after_uses_the_default_delay(server, client, value):
    server.script = [error_of_handler("busy", 503, **{"Retry-After": value})]
    client.segment(IMAGE)
    assert len(server.received) == 2


def test_segment_does_not_retry_after_a_timeout(server):
    server.response = Canned(RESPONSE, pause_s=1.5)
    with (
        SegmentationClient(server.url, timeout_s=0.5) as client,
        pytest.raises(TimedOutError, match=r"no response within 0.5 s; raise timeout_s"),
    ):
        client.segment(IMAGE)
    assert len(server.received) == 1


def test_segment_broken_connection_raises_unreachable(server):
    server.response = Canned(RESPONSE, breaks=True)
    with (
        SegmentationClient(server.url, retries=0) as client,
        pytest.raises(UnreachableError, match=server.url),
    ):
        client.segment(IMAGE)


def test_segment_without_a_server_raises_unreachable_and_names_the_address(silent_url):
    message = rf"^{silent_url}: no server responds there \(Connection refused\); start one"
    with (
        SegmentationClient(silent_url, retries=1) as client,
        pytest.raises(UnreachableError, match=message),
    ):
        client.segment(IMAGE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"url": "localhost:8080"},
            "expected a server's address like http://127.0.0.1:8080, got 'localhost:8080'",
        ),
        ({"url": "ftp://127.0.0.1:8080"}, "got 'ftp://127.0.0.1:8080'"),
        ({"url": "http://"}, "expected a server's address .* got 'http://'"),
        ({"url": "http://127.0.0.1:99999"}, "expected a server's address .*:99999"),
        ({"url": "http://[::1"}, "expected a server's address .*::1"),
        ({"token": "s3cr\net"}, "^the token contains a line break or a non-ASCII character"),
        ({"token": "s3crét"}, "^the token contains a line break or a non-ASCII character"),
        ({"retries": -1}, "retries is how often"),
        ({"pool_size": 0}, "pool_size is the number of connections"),
    ],
    ids=[
        "no scheme",
        "scheme",
        "no host",
        "port",
        "IPv6",
        "line break",
        "accent",
        "retries",
        "pool",
    ],
)
def test_client_invalid_argument_raises(changes, message):
    with pytest.raises(ValueError, match=message):
        SegmentationClient(**{"url": "http://127.0.0.1:8080", **changes})


WIDER = response_document(np.zeros((4, 7), np.uint8))["mask"]
OTHER = response_document(np.zeros((4, 6), np.uint8))["mask"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"<html>Welcome</html>", "not a segmentation .*Invalid JSON.*inference port"),
        (RESPONSE[:-40], "not a segmentation .*Invalid JSON"),
        (b'{"status": "Healthy"}', r"not a segmentation \(Field required\)"),
        (b"[1, 2]", "not a segmentation"),
        (b"", "not a segmentation"),
        (response_document(mask=WIDER), r"expected a mask of mode P and \(6, 4\) pixels .*, got P and \(7, 4\)"),  # noqa: E501
        (response_document(classes=[]), r"not a segmentation \(.*at least 1 item"),
        (response_document(width=0), r"not a segmentation \(.*greater than 0"),
        (response_document(mask={"encoding": "dense", "data": "0"}), r"not a segmentation \(.*'png'"),  # noqa: E501
        (response_document(mask={"encoding": "png", "data": "*"}), "mask is not base64"),
        (response_document(mask={"encoding": "png", "data": "R0lGODlh"}), "mask cannot be decoded"),
        (response_document(mask={**OTHER, "data": OTHER["data"][:80]}), "mask cannot be decoded"),
        (response_document(confidence=WIDER), r"a confidence of mode L and \(6, 4\) pixels"),
    ],
    ids=[
        "html", "cut short", "another service", "list", "empty", "mask of another size",
        "no classes", "no width", "other encoding", "no base64", "no PNG", "PNG cut short", "other confidence",  # noqa: E501
    ],
)  # fmt: skip
def test_segment_malformed_response_raises(server, client, body, message):
    server.response = Canned(body if isinstance(body, bytes) else json.dumps(body).encode())
    with pytest.raises(MalformedResponseError, match=message) as caught:
        client.segment(IMAGE)
    assert "\n" not in str(caught.value)


def test_import_of_the_client_imports_no_torch():
    code = (
        "import sys, segserve.client; print(sorted({'torch', 'timm', 'torchvision', 'httpx'} "
        "& {*sys.modules}))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert result.stdout.strip() == "[]"
