"""Measures the client's overhead per request: `python -m bench.client`.

A server in another process sends a prepared response: the label map of a photograph of 640 x 480
pixels, as PNG in JSON. The baseline sends the same bytes with `http.client`, and does not parse.
"""

import http.client
import io
import multiprocessing
import statistics
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from multiprocessing.connection import Connection
from timeit import repeat

import numpy as np
from PIL import Image

from segserve.client import SegmentationClient
from segserve.local import LocalSegmenter
from segserve.resources import resource, sample_photograph

SIZE_WH = 640, 480
REQUESTS = 300


def main() -> None:
    picture = Image.open(sample_photograph("chelsea.png")).convert("RGB").resize(SIZE_WH)
    pixels = np.asarray(picture)
    picture.save(file := io.BytesIO(), "JPEG", quality=95)
    jpeg = file.getvalue()
    with LocalSegmenter(resource("model/embedded")) as segmenter:
        response = segmenter.segment_raw(jpeg, mask="png")
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(
        target=_serve, args=(theirs, response), daemon=True
    )
    server.start()
    port = ours.recv()
    try:
        _report("bare exchange (http.client)", _bare(port, jpeg))
        with SegmentationClient(f"http://127.0.0.1:{port}", token="any") as client:  # noqa: S106
            _report("segment, JPEG file as bytes", lambda: client.segment(jpeg))
            _report("segment, array uint8 (480, 640, 3)", lambda: client.segment(pixels))
            segmentation = client.segment(jpeg)
        _report("to_coco", lambda: segmentation.to_coco(image_id=1))
        _report("overlay", segmentation.overlay)
    finally:
        server.terminate()


def _serve(port: Connection, response: bytes) -> None:
    class Gateway(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", str(len(response)))
            self.send_header("Server-Timing", "decode;dur=1.25, inference;dur=50, encode;dur=1")
            self.end_headers()
            self.wfile.write(response)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Gateway)
    port.send(server.server_address[1])
    server.serve_forever()


def _bare(port: int, image: bytes) -> Callable[[], object]:
    connection = http.client.HTTPConnection("127.0.0.1", port)

    def exchange() -> bytes:
        connection.request("POST", "/predictions/deeplabv3", body=image)
        return connection.getresponse().read()

    return exchange


def _report(name: str, work: Callable[[], object]) -> None:
    """Prints medians, so that other work on the machine has little influence."""
    cpu_s = repeat(work, timer=time.process_time, number=1, repeat=REQUESTS)
    wall_s = repeat(work, number=1, repeat=REQUESTS)
    print(
        f"{name:36} {1000 * statistics.median(cpu_s):6.2f} ms of this process, "
        f"{1000 * statistics.median(wall_s):6.2f} ms in all"
    )


if __name__ == "__main__":
    main()
