"""The address and the options of a request."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import TypedDict, Unpack
from urllib.parse import quote, urlsplit

JSON = "application/json"

ClassNames = str | int | Iterable[str | int]
"""One or several classes, by label or id."""


class SegmentOptions(TypedDict, total=False):
    """The options of `SegmentationClient.segment`. Options that are absent or None are not sent."""

    mode: str | None
    tta: str | None
    classes: ClassNames | None
    threshold: float | None
    confidence: bool


class ResponseOptions(SegmentOptions, total=False):
    """`SegmentOptions` and `mask`, the mask's encoding in JSON: `dense`, `rle`, `png`, `polygons`
    or `none`.
    """

    mask: str | None


@dataclass(frozen=True)
class Target:
    """One model of one server, with its timeouts and its connection pool's size.

    Raises:
        ValueError: the address, the token or the pool size is invalid.
    """

    url: str
    model: str
    version: str | None
    token: str | None = field(repr=False)
    timeout_s: float
    connect_timeout_s: float
    pool_size: int

    def __post_init__(self) -> None:
        if self.pool_size < 1:
            raise ValueError(
                f"pool_size is the number of connections, at least 1, got {self.pool_size}"
            )
        if self.token and not (self.token.strip().isascii() and self.token.strip().isprintable()):
            raise ValueError(  # omits the token, because this may be logged
                "the token holds a line break or a letter beyond ASCII, as none does that a server "
                "made: copy it again"
            )

    @property
    def endpoint(self) -> str:
        """The URL of predictions over HTTP."""
        if fault := _fault_of_address(self.url):
            raise ValueError(
                f"expected a server's address like http://127.0.0.1:8080, got {self.url!r}: {fault}"
            )
        path = [self.model] if self.version is None else [self.model, self.version]
        return "/".join(
            (self.url.rstrip("/"), "predictions", *(quote(part, safe="") for part in path))
        )

    @property
    def own_host(self) -> str | None:
        """The host of the HTTP address if it is this machine, else None."""
        host = urlsplit(self.url).hostname or ""
        return host if is_this_machine(host) else None

    @property
    def authority(self) -> tuple[str, bool]:
        """HOST:PORT for gRPC, and whether the connection uses TLS."""
        scheme, _, rest = self.url.rpartition("://")
        address = rest.rstrip("/")
        if scheme not in ("", "grpc", "grpcs", "http", "https") or not re.fullmatch(
            r"[^/]+:[0-9]+", address
        ):
            raise ValueError(
                "expected a gRPC address like 127.0.0.1:7070 or grpcs://HOST:PORT, got "
                f"{self.url!r}"
            )
        return address, scheme in ("grpcs", "https")

    @property
    def authorization(self) -> str | None:
        token = (self.token or "").strip()
        return f"Bearer {token}" if token else None


def is_this_machine(host: str) -> bool:
    """Whether the host is the loopback interface. Such requests must not use the environment's
    proxy.
    """
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _fault_of_address(url: str) -> str:
    """Why the URL is not a valid HTTP address; empty if it is valid."""
    try:
        parts = urlsplit(url)
        scheme, host, _ = parts.scheme, parts.hostname, parts.port
    except ValueError as error:  # an invalid port, or an unclosed bracket
        return str(error)
    if "://" not in url:
        return "no scheme"
    if scheme not in ("http", "https"):
        return f"its scheme is {scheme!r}"
    return "" if host else "no host"


def as_fields(**options: Unpack[ResponseOptions]) -> dict[str, str]:
    """Converts the given options to strings that are valid in a header."""
    fields = {name: str(value) for name, value in options.items() if value is not None}
    if (classes := options.get("classes")) is not None:
        fields["classes"] = _class_list(classes)
    fields.pop("confidence", None)
    if options.get("confidence"):
        fields["confidence"] = "true"
    for name, value in fields.items():
        if not value.isascii() or not value.isprintable():
            raise ValueError(f"option {name}: expected plain ASCII, got {value!r:.80}")
    return fields


def _class_list(classes: ClassNames) -> str:
    """The classes as a JSON list. JSON escapes keep any label in ASCII."""
    if isinstance(classes, str):
        classes = classes.split(",")
    names = [classes] if isinstance(classes, int) else classes
    return json.dumps([name if isinstance(name, str) else int(name) for name in names])


def http_headers(accept: str, fields: Mapping[str, str]) -> dict[str, str]:
    """The headers of a request whose body is the image file."""
    headers = {f"X-Segment-{name.title()}": value for name, value in fields.items()}
    return {"Accept": accept, "Content-Type": "application/octet-stream", **headers}
