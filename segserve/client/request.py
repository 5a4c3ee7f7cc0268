"""The parts of a request: address, image and options."""

import io
import json
import os
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import TypedDict, Unpack
from urllib.parse import quote, urlsplit

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

JSON = "application/json"
DEFAULT_MODEL = "deeplabv3"

ImageInput = (
    str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | NDArray[np.uint8]
)
"""A path, the bytes of an image file, a PIL image, or an array: uint8 (H, W, 3), RGB, or uint8 (H,
W), grey.
"""

ClassNames = str | int | Iterable[str | int]
"""One or several classes, by label or id."""

_PNG_MODES = ("1", "L", "P", "RGB", "I;16")  # the server converts these to the same RGB
_WITHOUT_RANGE = ("I", "F")


class SegmentOptions(TypedDict, total=False):
    """The options of `SegmentationClient.segment`. Options that are absent or None are not sent."""

    mode: str | None
    tta: str | None
    classes: ClassNames | None
    threshold: float | None
    confidence: bool
    alpha: str | None


class ResponseOptions(SegmentOptions, total=False):
    """`SegmentOptions` and the mask's encoding: `dense`, `rle`, `png`, `polygons` or `none`."""

    mask: str | None


@dataclass(frozen=True)
class Target:
    """One model of one server. Raises ValueError if the address or the token is invalid."""

    url: str
    model: str
    version: str | None
    token: str | None = field(repr=False)

    def __post_init__(self) -> None:
        if self.token and not (self.token.strip().isascii() and self.token.strip().isprintable()):
            raise ValueError(  # omits the token, because this may be logged
                "the token contains a line break or a non-ASCII character: copy it again"
            )
        try:
            parts = urlsplit(self.url)
            is_address = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:  # an invalid port, or an unclosed bracket
            is_address = False
        if not is_address:
            raise ValueError(
                f"expected a server's address like http://127.0.0.1:8080, got {self.url!r}"
            )

    @property
    def endpoint(self) -> str:
        """The URL of predictions."""
        names = [self.model] if self.version is None else [self.model, self.version]
        path = "/".join(quote(name, safe="") for name in names)
        return f"{self.url.rstrip('/')}/predictions/{path}"

    @property
    def loopback_host(self) -> str | None:
        """The host of the address if it is this machine, whose requests must not use a proxy."""
        host = urlsplit(self.url).hostname or ""
        try:
            is_loopback = ip_address(host).is_loopback
        except ValueError:
            is_loopback = host == "localhost"
        return host if is_loopback else None

    @property
    def authorization(self) -> str | None:
        token = (self.token or "").strip()
        return f"Bearer {token}" if token else None


def as_fields(**options: Unpack[ResponseOptions]) -> dict[str, str]:
    """Converts the given options to strings. Raises TypeError if there is no such option, and
    ValueError if a value contains characters that a header cannot contain.
    """
    if unknown := options.keys() - ResponseOptions.__annotations__.keys():
        raise TypeError(f"unexpected options: {', '.join(sorted(unknown))}")
    fields = {name: str(value) for name, value in options.items() if value is not None}
    if (classes := options.get("classes")) is not None:
        fields["classes"] = _class_list(classes)
    if "confidence" in fields:
        fields["confidence"] = fields["confidence"].lower()
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


def as_image_file(image: ImageInput) -> bytes:
    """Returns the bytes of an image file. A PIL image or an array is encoded as PNG. The EXIF
    orientation of a PIL image is applied, so that the result is the same as for its file.

    Raises:
        OSError: the file cannot be read.
        TypeError: the input is not an `ImageInput`.
        ValueError: the array has another shape or dtype, or the pixels have no fixed range.
    """
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if isinstance(image, str | os.PathLike):
        return Path(image).read_bytes()
    if isinstance(image, np.ndarray):
        return _as_png(_from_array(image))
    if isinstance(image, Image.Image):
        return _as_png(ImageOps.exif_transpose(image))
    raise TypeError(
        f"expected a path, bytes, a PIL image or a NumPy array, got {type(image).__name__}"
    )


def _from_array(pixels: NDArray[np.uint8]) -> Image.Image:
    is_image = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)
    if pixels.dtype != np.uint8 or not is_image or not pixels.size:
        raise ValueError(
            f"expected uint8 (H, W, 3), RGB, or (H, W), grey, got {pixels.dtype} {pixels.shape}"
        )
    return Image.fromarray(np.ascontiguousarray(pixels))


def _as_png(image: Image.Image) -> bytes:
    if image.mode in _WITHOUT_RANGE:
        raise ValueError(
            f"pixels of type {image.mode} (32 bits) have no fixed range: convert the image to RGB"
        )
    if image.mode not in _PNG_MODES and not image.mode.startswith("I;16"):
        image = image.convert("RGB")
    buffer = io.BytesIO()
    # For photographs, Z_RLE is smaller and faster.
    image.save(buffer, "PNG", compress_level=1, compress_type=zlib.Z_RLE)
    return buffer.getvalue()
