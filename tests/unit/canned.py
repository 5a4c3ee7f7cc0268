"""A server on 127.0.0.1 that sends prepared responses, and a complete response."""

import base64
import io
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from PIL import Image

from segserve.runtime.encode.mask import encode_png

from .tiny import CLASSES, tiny_record

LABEL_MAP = np.zeros((4, 6), np.uint8)
LABEL_MAP[1:3, 2:5] = 2
LABEL_MAP[0, 0] = 1
IMAGE_RGB = np.random.default_rng(5).integers(0, 256, (4, 6, 3), np.uint8)


def as_file(pixels: np.ndarray, file_format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, file_format, **options)
    return buffer.getvalue()


def response_document(label_map: np.ndarray = LABEL_MAP, **changes) -> dict:
    """The JSON response of the tiny model's server for this label map."""
    palette = tiny_record().palette
    mask = {"encoding": "png", "data": base64.b64encode(encode_png(label_map, palette)).decode()}
    height_px, width_px = label_map.shape
    classes = sorted(
        (_entry(int(i), label_map) for i in np.unique(label_map)),
        key=lambda entry: -entry["pixels"],
    )
    model = {"name": "tiny", "version": "1.0"}
    return {
        "model": model,
        "width": width_px,
        "height": height_px,
        "classes": classes,
        "mask": mask,
        **changes,
    }


def _entry(class_id: int, label_map: np.ndarray) -> dict:
    rows, columns = np.nonzero(label_map == class_id)
    label, color = (*CLASSES, ("bird", (128, 128, 0)))[class_id]
    return {
        "id": class_id,
        "label": label,
        "color": color,
        "pixels": len(rows),
        "fraction": len(rows) / label_map.size,
        "box": [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1],
        "confidence": 0.9,
    }


@dataclass(frozen=True)
class Canned:
    """One response, sent after `pause_s`. If it `breaks`, the connection ends halfway through the
    body.
    """

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    pause_s: float = 0
    breaks: bool = False


@dataclass(frozen=True)
class Received:
    path: str
    headers: dict[str, str]
    body: bytes
    connection: tuple[str, int]


class CannedServer(ThreadingHTTPServer):
    """Sends the responses of `script` in order, then always `response`. Records the requests."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.response = Canned(
            json.dumps(response_document()).encode(), headers={"Content-Type": "application/json"}
        )
        self.script: list[Canned] = []
        self.received: list[Received] = []

    def response_to(self, body: bytes) -> Canned:
        return self.script.pop(0) if self.script else self.response

    def handle_error(self, request, client_address) -> None:
        """A client that closes its connection early is not an error."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: CannedServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.received.append(
            Received(self.path, dict(self.headers), body, self.client_address)
        )
        canned = self.server.response_to(body)
        time.sleep(canned.pause_s)
        self.send_response(canned.status)
        for name, value in canned.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(canned.body)))
        self.end_headers()
        self.wfile.write(canned.body[: len(canned.body) // 2] if canned.breaks else canned.body)
        self.close_connection = canned.breaks

    def log_message(self, *_) -> None:
        pass


@contextmanager
def canned_server(kind: type[CannedServer] = CannedServer) -> Iterator[CannedServer]:
    server = kind()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
