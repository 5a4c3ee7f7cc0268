"""Measuring a served model over real sockets: requests, agreement with offline, errors."""

import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from segserve.client import UnreachableError
from segserve.schema.request import Options
from segserve.training.measure import NO_OPTIONS, measure, served_model

from .canned import response_document
from .evaluated import color_predictor, write_noisy
from .tiny import tiny_record

RECORD = tiny_record()


def response_to(image_file: bytes) -> dict:
    """The response of a server with the record's classes: the class is the strongest colour."""
    with Image.open(io.BytesIO(image_file)) as picture:
        label_map = np.array(picture.convert("RGB")).argmax(axis=2).astype(np.uint8)
    return response_document(label_map)


class Server(ThreadingHTTPServer):
    def __init__(self):
        super().__init__(("127.0.0.1", 0), RequestHandler)
        self.respond = lambda content: (200, json.dumps(response_to(content)).encode())
        self.received = []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class RequestHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.append((self.path, dict(self.headers), content))
        status, body = self.server.respond(content)
        self.send_response(status)
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


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_noisy(tmp_path_factory.mktemp("served"))


def measured(url, data, record=RECORD, options=NO_OPTIONS, **keywords):
    with served_model(url, record, data, options, **keywords) as predictor:
        return measure(data, predictor, lambda _: None)


def test_served_model_counts_the_same_pixels_as_the_same_model_offline(server, data):
    through, offline = measured(server.url, data), measure(data, color_predictor(), lambda _: None)
    assert through.confusion == offline.confusion
    assert through.class_boundary_iou == offline.class_boundary_iou
    assert 0.3 < offline.mean_iou < 0.9


def test_served_model_sends_the_files_as_they_are(server, data):
    measured(server.url, data, token="made up", name="other")  # noqa: S106
    files = {data.paths(name)[0].read_bytes() for name in data.names}
    assert {content for _, _, content in server.received} == files
    assert {path for path, _, _ in server.received} == {"/predictions/other"}
    assert {headers["Authorization"] for _, headers, _ in server.received} == {"Bearer made up"}


def test_served_model_by_default_is_the_record_s(server, data):
    measured(server.url, data)
    assert {path for path, _, _ in server.received} == {"/predictions/tiny"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (NO_OPTIONS, {"X-Segment-Mask": "png"}),
        (
            Options(tta="flip", mode="slide"),
            {"X-Segment-Mask": "png", "X-Segment-Tta": "flip", "X-Segment-Mode": "slide"},
        ),
        (Options(tta="none"), {"X-Segment-Mask": "png", "X-Segment-Tta": "none"}),
    ],
    ids=["none", "both", "one that is the default"],
)
def test_served_model_sends_the_options_that_were_set(server, data, options, expected):
    measured(server.url, data, options=options)
    for _, headers, _ in server.received:
        assert {
            name: value for name, value in headers.items() if name.startswith("X-Segment")
        } == expected


def test_served_model_error_response_raises_and_names_the_image(server, data):
    body = json.dumps({"error": {"code": "image_corrupt", "message": "no image"}}).encode()
    server.respond = lambda _: (422, body)
    with pytest.raises(ValueError, match=r"^p0: 422 image_corrupt: no image$"):
        measured(server.url, data)


def test_served_model_without_a_server_raises_and_names_the_address(silent_url, data):
    with pytest.raises(UnreachableError, match=rf"^{silent_url}: no server responds there"):
        measured(silent_url, data)


def test_served_model_address_without_scheme_raises(data):
    with pytest.raises(
        ValueError, match=r"^expected a server's address like .*, got 'localhost:8080'"
    ):
        measured("localhost:8080", data)


BACKGROUND = response_document(np.zeros((64, 64), np.uint8))
SHARE = BACKGROUND["classes"][0]


@pytest.mark.parametrize(
    ("response", "message"),
    [
        (
            response_document(np.zeros((64, 65), np.uint8)),
            "expected a mask of 64 x 64 pixels, got 65 x 64 pixels",
        ),
        (
            {**BACKGROUND, "classes": [{**SHARE, "label": "sky"}]},
            "the server calls class 0 'sky', the record 'background'",
        ),
        (
            response_document(np.full((64, 64), 3, np.uint8)),
            "the server calls class 3 'bird', the record None",
        ),
        ({**BACKGROUND, "classes": []}, "the response is not a segmentation"),
        ({"status": "Healthy"}, "the response is not a segmentation"),
    ],
    ids=["other size", "other label", "class beyond the record's", "no classes", "another service"],
)
def test_served_model_invalid_response_raises_and_names_the_image(server, data, response, message):
    server.respond = lambda _: (200, json.dumps(response).encode())
    with pytest.raises(ValueError, match=f"^p0: {message}"):
        measured(server.url, data)


def test_served_model_response_that_is_no_json_raises_and_names_the_image(server, data):
    server.respond = lambda _: (200, b"<html>")
    with pytest.raises(ValueError, match=r"^p0: "):
        measured(server.url, data)
