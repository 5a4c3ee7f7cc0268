"""Clients that do what none should, over bare sockets."""

import json
import socket
import struct
import threading
import time
from urllib.parse import urlsplit

from .served import TOKEN

_WAIT_S = 60


def request_head(*headers: str, client: str = "rude") -> bytes:
    lines = [
        "POST /predictions/deeplabv3 HTTP/1.1",
        "Host: gateway",
        f"Authorization: Bearer {TOKEN}",
    ]
    return "\r\n".join([*lines, f"X-Real-IP: {client}", *headers, "", ""]).encode()


def connect(url: str) -> socket.socket:
    parts = urlsplit(url)
    return socket.create_connection((parts.hostname, parts.port), timeout=_WAIT_S)


def respond(connection: socket.socket) -> tuple[int, str, str | None]:
    """Status, code and `Retry-After` of an error response that closes the connection."""
    content = b""
    while piece := connection.recv(65536):
        content += piece
        if complete(content):
            break
    head, _, body = content.partition(b"\r\n\r\n")
    headers = dict(line.lower().split(": ", 1) for line in head.decode().split("\r\n")[1:])
    return int(head.split()[1]), json.loads(body)["error"]["code"], headers.get("retry-after")


def complete(content: bytes) -> bool:
    head, end, body = content.partition(b"\r\n\r\n")
    lengths = [
        int(line[15:])
        for line in head.lower().split(b"\r\n")
        if line.startswith(b"content-length:")
    ]
    return bool(end and lengths and len(body) >= lengths[0])


class Trickle:
    """Requests that arrive one byte in a while: the body of some, and already the head of as many
    others.
    """

    def __init__(self, url: str, *, clients: int) -> None:
        self.responses: list[tuple[int, str, str | None]] = []
        self._url = url
        self._over = threading.Event()
        bodies = [threading.Thread(target=self._send_body, daemon=True) for _ in range(clients)]
        heads = [threading.Thread(target=self._send_head, daemon=True) for _ in range(clients)]
        self._bodies, self._all = bodies, bodies + heads
        for thread in self._all:
            thread.start()

    def join_bodies(self) -> None:
        """Waits until all requests with complete headers have a response."""
        for thread in self._bodies:
            thread.join(_WAIT_S)

    def close(self) -> None:
        self._over.set()
        for thread in self._all:
            thread.join(_WAIT_S)

    def _send_body(self) -> None:
        with connect(self._url) as connection:
            connection.sendall(request_head("Content-Length: 1000000"))
            threading.Thread(target=self._drip, args=(connection,), daemon=True).start()
            self.responses.append(respond(connection))

    def _send_head(self) -> None:
        with connect(self._url) as connection:
            connection.sendall(request_head("Content-Length: 1000000")[:-2])
            self._drip(connection)

    def _drip(self, connection: socket.socket) -> None:
        try:
            while not self._over.wait(0.2):
                connection.sendall(b"x")
        except OSError:  # the server has responded and closed
            return


def leave_within_request(url: str) -> None:
    with connect(url) as connection:
        connection.sendall(request_head("Content-Length: 100000") + b"x" * 1000)


def leave_within_response(url: str, image: bytes) -> None:
    """Reads the first bytes of a response that is much larger than the socket buffers, and
    disconnects.
    """
    with connect(url) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(
            request_head(f"Content-Length: {len(image)}", "X-Segment-Mask: dense") + image
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
        reset_on_close = struct.pack("ii", 1, 0)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset_on_close)


def send_without_end(url: str) -> tuple[int, str, str | None]:
    """Sends a body in chunks until the server responds, and returns the response."""
    responses: list[tuple[int, str, str | None]] = []
    with connect(url) as connection:
        connection.sendall(request_head("Transfer-Encoding: chunked"))
        listener = threading.Thread(
            target=lambda: responses.append(respond(connection)), daemon=True
        )
        listener.start()
        deadline = time.monotonic() + _WAIT_S
        while listener.is_alive() and time.monotonic() < deadline:
            try:
                connection.sendall(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
            except OSError:  # closed after the response
                break
        listener.join(_WAIT_S)
    return responses[0]
