"""What of a client's request an engine gets: path, headers, and the options of the query."""

from urllib.parse import parse_qsl

from starlette.requests import Request
from starlette.types import Scope

from ..engines import Headers
from ..runtime.errors import BadRequestError
from ..runtime.request import OPTION_HEADER_PREFIX

_MAX_PATH_BYTES, _MAX_HEADERS_BYTES = 4_000, 7_680
"""TorchServe reads a line of 4,096 bytes and 8,192 bytes of headers, and
closes a connection with more, often before its response is read."""
_SINGLE_CONNECTION_HEADERS = frozenset(  # RFC 9110, section 7.6.1, and the token
    {b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"te"}
    | {b"trailer", b"transfer-encoding", b"upgrade", b"expect", b"host", b"authorization"}
)


def declared_bytes(request: Request) -> int | None:
    """The header Content-Length, at most 2**63 - 1; None without a valid one."""
    declared = request.headers.get("content-length", "")
    return min(int(declared), 2**63 - 1) if declared.isdecimal() else None


def end_to_end(headers: Headers) -> Headers:
    """Without the headers of a single connection; names in lower case."""
    lower = [(name.lower(), value) for name, value in headers]
    return [header for header in lower if header[0] not in _SINGLE_CONNECTION_HEADERS]


def query_options(request: Request) -> Headers:
    """Options in the query as headers, unless a header sets them. TorchServe drops the query."""
    options: dict[str, str] = {}
    for name, value in parse_qsl(
        request.scope["query_string"].decode("latin-1"), keep_blank_values=True
    ):
        header = f"{OPTION_HEADER_PREFIX}{name.lower()}"
        options[header] = f"{options[header]},{value}" if header in options else value
    return [
        (name.encode(), value.encode())
        for name, value in options.items()
        if name not in request.headers
    ]


def target_of(scope: Scope) -> bytes:
    """Path and query, as the client sent them."""
    query: bytes = scope["query_string"]
    path: bytes = scope["raw_path"]
    return path + b"?" + query if query else path


def check_head(target: bytes, headers: Headers) -> None:
    """Raises BadRequestError: the path or the headers are larger than TorchServe reads."""
    headers_bytes = sum(len(name) + len(value) + len(": \r\n") for name, value in headers)
    for size, limit, name in [
        (len(target), _MAX_PATH_BYTES, "path"),
        (headers_bytes, _MAX_HEADERS_BYTES, "headers"),
    ]:
        if size > limit:
            raise BadRequestError(f"{name}: {size} bytes, the limit is {limit}")
