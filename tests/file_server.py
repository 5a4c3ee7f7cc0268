"""Serves one file over HTTP on 127.0.0.1, with faults on demand."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class FileServer:
    """`drops` holds, for one request after the other, how many bytes are sent before the connection
    breaks.
    """

    content: bytes
    path: str
    has_ranges: bool = True
    drops: list[int] = field(default_factory=list)
    url: str = ""
    ranges: list[str | None] = field(default_factory=list)

    def respond(self, request: BaseHTTPRequestHandler) -> None:
        wanted = request.headers.get("Range")
        self.ranges.append(wanted)
        if request.path != self.path:
            request.send_error(404)
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and self.has_ranges else 0
        if start >= len(self.content):
            request.send_error(416)
            return
        request.send_response(206 if start else 200)
        if start:
            request.send_header(
                "Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}"
            )
        request.send_header("Content-Length", str(len(self.content) - start))
        request.end_headers()
        end = start + self.drops.pop(0) if self.drops else None
        request.wfile.write(self.content[start:end])


@contextmanager
def served(content: bytes, path: str = "/file.bin", **behaviour) -> Iterator[FileServer]:
    """Serves `content` until the block ends; `url` is the server's address."""
    file = FileServer(content, path, **behaviour)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            file.respond(self)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    file.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield file
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
