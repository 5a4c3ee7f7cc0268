"""The client against real sockets: what it sends, and what it makes of refusals."""

import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import requests

from segserve.client import RefusedError, SegmentationClient, decode_png_mask

ANSWER = {"width": 1, "height": 1, "classes": [], "mask": {"encoding": "png", "data": "iVBORw=="}}


class Server(ThreadingHTTPServer):
    """Answers every request with `answer`, and keeps what it was sent."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Door)
        self.answer = 200, "application/json", json.dumps(ANSWER).encode()
        self.received = []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class Door(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.append((self.path, dict(self.headers), content, self.client_address))
        status, media_type, body = self.server.answer
        self.send_response(status)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def client(server):
    with SegmentationClient(server.url, token="made up", model="tiny", timeout_s=30) as client:  # noqa: S106
        yield client


def test_segment_sends_image_options_and_token(server, client):
    assert client.segment(b"image", mask="dense") == ANSWER
    ((path, headers, content, _),) = server.received
    assert (path, content) == ("/predictions/tiny", b"image")
    assert headers["Authorization"] == "Bearer made up"
    assert headers["Accept"] == "application/json"
    assert headers["X-Segment-Mask"] == "dense"
    assert headers["Content-Type"] == "application/octet-stream"


def test_client_without_token_sends_none_and_takes_a_trailing_slash(server):
    with SegmentationClient(f"{server.url}/") as client:
        client.segment(b"image")
    ((path, headers, *_),) = server.received
    assert path == "/predictions/deeplabv3"
    assert "Authorization" not in headers


def test_client_keeps_one_connection(server, client):
    for _ in range(3):
        client.segment(b"image")
    assert len({address for *_, address in server.received}) == 1


@pytest.mark.parametrize(
    ("method", "media_type"), [("label_png", "image/png"), ("overlay_jpeg", "image/jpeg")], ids=["label map", "overlay"]
)
def test_pictures_are_asked_for_by_accept_and_come_as_bytes(server, client, method, media_type):
    server.answer = 200, media_type, b"\x89picture"
    assert getattr(client, method)(b"image") == b"\x89picture"
    assert server.received[0][1]["Accept"] == media_type
    assert "X-Segment-Mask" not in server.received[0][1]


@pytest.mark.parametrize(
    ("status", "body", "code", "message"),
    [
        (
            422,
            b'{"error": {"code": "image_truncated", "message": "send it whole"}}',
            "image_truncated",
            "send it whole",
        ),
        (404, b'{"code": 404, "type": "ModelNotFoundException", "message": "no x"}', "ModelNotFoundException", "no x"),
        (400, b'{"code": 400, "type": "InvalidKeyException", "message": "Token"}', "InvalidKeyException", "Token"),
        (502, b"<html>Bad Gateway</html>", "unknown", "Bad Gateway"),
        (413, b"", "unknown", "Request Entity Too Large"),
        (500, b'{"error": "it broke"}', "unknown", "it broke"),
        (500, b'{"error": null}', "unknown", "Internal Server Error"),
        (500, b'{"error": {}}', "unknown", "Internal Server Error"),
        (500, b"[1, 2]", "unknown", "Internal Server Error"),
        (500, b'"text"', "unknown", "Internal Server Error"),
        (500, b"null", "unknown", "Internal Server Error"),
        (500, b"\xff\xfe", "unknown", "Internal Server Error"),
    ],
    ids=[
        "handler",
        "torchserve 404",
        "torchserve token",
        "html",
        "empty",
        "error text",
        "error null",
        "error empty",
        "list",
        "string",
        "null",
        "no utf-8",
    ],
)
def test_segment_refusal_has_status_code_and_message(server, client, status, body, code, message):
    server.answer = status, "application/json", body
    with pytest.raises(RefusedError, match=f"^{status} {code}: {message}$") as caught:
        client.segment(b"image")
    assert (caught.value.status, caught.value.code) == (status, code)


def test_segment_answer_that_is_no_json_raises_a_request_exception(server, client):
    server.answer = 200, "text/html", b"<html>welcome</html>"
    with pytest.raises(requests.RequestException, match="Expecting value"):
        client.segment(b"image")


def test_segment_unreachable_server_raises_a_request_exception():
    with socket.socket() as bound:  # a port on which nobody listens
        bound.bind(("127.0.0.1", 0))
        client = SegmentationClient(f"http://127.0.0.1:{bound.getsockname()[1]}")
        with pytest.raises(requests.ConnectionError, match="refused"), client:
            client.segment(b"image")


def test_decode_png_mask_gives_the_file():
    assert decode_png_mask(ANSWER) == b"\x89PNG"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({}, "expected a mask encoded as png, got None"),
        ({"mask": {"encoding": "dense", "data": []}}, "expected a mask encoded as png, got 'dense'"),
        ({"mask": {"encoding": "png", "data": "*"}}, "not base64"),
    ],
    ids=["none", "dense", "broken"],
)
def test_decode_png_mask_other_answer_raises(answer, message):
    with pytest.raises(ValueError, match=message):
        decode_png_mask(answer)
