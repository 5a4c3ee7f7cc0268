"""Hostile requests that exist on the wire alone: paths, header lines and forms that no client
library would send.
"""

from collections.abc import Sequence
from random import Random

from .bodies import IMAGE

GOOD_PATH = "/predictions/tiny"
TOKEN = "TOKEN"  # noqa: S105 - stands for the server's
"""The placeholder for the server's token in a request."""

PATHS = (
    "/predictions/../../etc/passwd",
    "/predictions/%2e%2e/%2e%2e/etc/passwd",
    "/predictions/..%2f..%2fetc%2fpasswd",
    "/predictions/tiny/../../models",
    "/predictions/tiny/%2e%2e",
    "/predictions/....//....//etc/passwd",
    "/predictions/..\\..\\windows\\win.ini",
    "/predictions/tiny%00.mar",
    "/predictions/tiny%0d%0aX-Evil:%201",
    "/predictions/tiny%c0%ae%c0%ae",
    "/predictions/%",
    "/predictions/%zz",
    "/predictions/tiny;a=b",
    "/predictions/tiny/1.0/extra",
    "/predictions/tiny/../tiny",
    "/predictions//tiny",
    "//predictions/tiny",
    "/predictions/",
    "/predictions",
    "/predictions/" + "a" * 3000,
    "/" + "a/" * 1500,
    "/predictions/tiny?" + "a=b&" * 900,
    "/predictions/tiny?mask=../../etc/passwd",
    "/predictions/file:%2f%2f%2fetc%2fpasswd",
    "/predictions/tiny#fragment",
    "/explanations/tiny",
    "/models/tiny?url=http://169.254.169.254/latest/meta-data",
    "/models?url=http://127.0.0.1:1/evil.mar&initial_workers=1",
    "/workflows?url=file:///etc/passwd",
    "/v1/models/tiny:predict",
    "/v2/models/tiny/infer",
    "/%2e%2e/%2e%2e/key_file.json",
    "/key_file.json",
    "/-/routes",
    "/api/v0/nodes",
    "*",
    "http://127.0.0.1:1/predictions/tiny",
    "/\u00e9\u00e8",
)

HEADER_LINES = (
    "X-Segment-Mask: png\r\nX-Segment-Mask: rle",
    "X-Segment-Mask: none\r\n folded",
    "X-Segment-Mask : none",
    "X-Segment-Mask: no\0ne",
    "X-Segment-Mask: none\rX-Evil: 1",
    "X-Segment-Mask: none\nX-Evil: 1",
    "X-Segment-Classes: \xff\xfe\xe9",
    "X-Segment-\x07: 1",
    ": empty",
    "no colon at all",
    "X-Long: " + "a" * 7000,
    "X-Longer: " + "a" * 200_000,
    "\r\n".join(f"X-Many-{number}: 1" for number in range(300)),
    "\r\n".join(f"X-Segment-{number}: 1" for number in range(100)),
    "Content-Length: 0",
    "Content-Length: -1",
    "Content-Length: 99999999999999999999",
    "Content-Length: 5\r\nContent-Length: 6",
    "Content-Length: +5",
    "Transfer-Encoding: chunked",
    "Transfer-Encoding: chunked, identity",
    "Transfer-Encoding: xchunked",
    "Expect: 100-continue",
    "Expect: nonsense",
    "Content-Encoding: gzip",
    "Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: "
    "AAMAAABkAARAAAAAAAIAAAAA",
    "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    "Host: evil.example",
    "X-Forwarded-For: 127.0.0.1, ' OR 1=1\r\nX-Forwarded-Host: evil.example\r\nForwarded: "
    "for=unix:/etc/passwd",
    "describe: True",
    "explain: True",
    "traceparent: 00-" + "f" * 32 + "-" + "f" * 16 + "-ff\r\ntracestate: " + "a=b," * 500,
    "Range: bytes=0-18446744073709551615",
    "Cookie: " + "a=b; " * 1000,
    "Accept: " + "image/png;q=0.1," * 400,
    "Connection: close, keep-alive, transfer-encoding",
)

FIRST_LINES = (
    f"POST {GOOD_PATH} HTTP/1.0",
    f"POST {GOOD_PATH} HTTP/9.9",
    f"POST {GOOD_PATH} HTTP/1.1 extra",
    f"POST {GOOD_PATH}",
    f"POST\t{GOOD_PATH}\tHTTP/1.1",
    f"GET {GOOD_PATH} HTTP/1.1",
    f"DELETE {GOOD_PATH} HTTP/1.1",
    f"TRACE {GOOD_PATH} HTTP/1.1",
    f"OPTIONS {GOOD_PATH} HTTP/1.1",
    f"CONNECT {GOOD_PATH} HTTP/1.1",
    f"PATCH {GOOD_PATH} HTTP/1.1",
    f"{'A' * 100} {GOOD_PATH} HTTP/1.1",
    f"post {GOOD_PATH} HTTP/1.1",
    "PRI * HTTP/2.0",
    "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
    "\0\0\0",
    "",
)

PART = 'Content-Disposition: form-data; name="data"; filename="x.png"\r\nContent-Type: image/png\r\n\r\n'  # noqa: E501


def on_the_wire(seed: int) -> dict[str, bytes]:
    """Requests by name, to be sent as they are. They end with the connection: `Connection:
    close`.
    """
    found = {
        f"paths-{number}": _request(first=f"POST {path} HTTP/1.1")
        for number, path in enumerate(PATHS)
    }
    found |= {f"lines-{number}": _request(line) for number, line in enumerate(HEADER_LINES)}
    found |= {f"firsts-{number}": _request(first=first) for number, first in enumerate(FIRST_LINES)}
    found |= {
        f"multiparts-{number}": request
        for number, request in enumerate(_forms(Random(seed)))  # noqa: S311
    }
    return found


def _request(*lines: str, first: str = f"POST {GOOD_PATH} HTTP/1.1", body: bytes = IMAGE) -> bytes:
    """Its own length and host come behind the hostile lines."""
    head = (first, *lines, "Host: 127.0.0.1", f"Authorization: Bearer {TOKEN}", "Connection: close")
    return "\r\n".join((*head, f"Content-Length: {len(body)}", "", "")).encode("utf-8") + body


def _forms(random: Random) -> Sequence[bytes]:
    def form(body: bytes, content_type: str = "multipart/form-data; boundary=xyz") -> bytes:
        return _request(f"Content-Type: {content_type}", body=body)

    part = b"--xyz\r\n" + PART.encode() + IMAGE + b"\r\n"
    nested = IMAGE
    for depth in range(50):
        inner = f"b{depth}".encode()
        head = b"--" + inner + b'\r\nContent-Disposition: form-data; name="data"\r\n'
        kind = b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n" % (depth - 1)
        nested = head + kind + nested + b"\r\n--" + inner + b"--\r\n"
    return [
        form(nested, "multipart/form-data; boundary=b49"),
        form(part),
        form(part[:-2]),
        form(part + b"--xyz--"),
        form(part + b"--xyz--\r\n" + part),
        form(part * 3 + b"--xyz--\r\n"),
        form(b"--xyz--\r\n"),
        form(b""),
        form(b"no boundary at all"),
        form(part + b"--xyz--\r\n", "multipart/form-data"),
        form(part + b"--xyz--\r\n", "multipart/form-data; boundary="),
        form(part + b"--xyz--\r\n", "multipart/form-data; boundary=abc"),
        form(part + b"--xyz--\r\n", 'multipart/form-data; boundary="x\\"yz'),
        form(part + b"--xyz--\r\n", "multipart/form-data; boundary=" + "x" * 5000),
        form(part + b"--xyz--\r\n", "multipart/form-data; boundary=xyz; boundary=abc"),
        form(part + b"--xyz--\r\n", "multipart/mixed; boundary=xyz"),
        form(part + b"--xyz--\r\n", "multipart/form-data; charset=utf-7; boundary=xyz"),
        form(part.replace(b'name="data"', b'name="../../data"') + b"--xyz--\r\n"),
        form(
            part.replace(b'filename="x.png"', b'filename="../../../../tmp/evil"') + b"--xyz--\r\n"
        ),
        form(
            part.replace(b'filename="x.png"', b'filename="' + b"a" * 100_000 + b'"')
            + b"--xyz--\r\n"
        ),
        form(part.replace(b'name="data"', b"") + b"--xyz--\r\n"),
        form(part.replace(b"form-data", b"attachment") + b"--xyz--\r\n"),
        form(part.replace(b'name="data"', b'name="data"; name="mask"') + b"--xyz--\r\n"),
        form(
            part.replace(b"Content-Type: image/png", b"Content-Transfer-Encoding: base64")
            + b"--xyz--\r\n"
        ),
        form(
            part.replace(b"Content-Type: image/png", b"Content-Type: application/json")
            + b"--xyz--\r\n"
        ),
        form(part.replace(b"Content-Type: image/png", b"X: " + b"y" * 100_000) + b"--xyz--\r\n"),
        form(
            part.replace(b"Content-Type: image/png", b"X: y\r\n" * 5000 + b"X: y") + b"--xyz--\r\n"
        ),
        form(part.replace(b"Content-Type: image/png\r\n", b"") + b"--xyz--\r\n"),
        form(
            b"".join(part.replace(b"data", b"x%d" % number) for number in range(2000))
            + b"--xyz--\r\n"
        ),
        form(b"\r\n" * 100_000 + part + b"--xyz--\r\n"),
        form(b"--xyz\r\n" * 20_000 + b"--xyz--\r\n"),
        form(random.randbytes(20_000)),
        form(b"a=b&" * 50_000, "application/x-www-form-urlencoded"),
        form(b"mask=png&data=" + b"%41" * 5000, "application/x-www-form-urlencoded"),
    ]
