"""The image formats that are read, and the names of others, for messages."""

import re

from ..errors import UnsupportedImageError

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "TIFF", "GIF")

HEIC_FORMAT = "HEIF"
"""Pillow's name of HEIC; read where the package pillow-heif is installed."""

# The first bytes of these formats. They distinguish a broken image from a file that is not an
# image.
SIGNATURE = re.compile(
    rb"\xff\xd8|\x89PNG|RIFF.{4}WEBP|.{4}ftypavif|BM.{4}\0{4}|II[*+]\0|MM\0[*+]|GIF8", re.DOTALL
)

_HEIC = re.compile(rb".{4}ftyp(?:hei[cmsx]|hev[cmsx]|mif1|msf1)", re.DOTALL)

# By the name of a format that people send: its first bytes.
_OTHERS = {
    "HEIC": _HEIC.pattern,
    "animated AVIF": rb".{4}ftypavis",
    "a video (MP4, MOV)": rb".{4}ftyp(?!crx)",
    "a camera's raw file": rb".{4}ftypcrx|FUJIFILMCCD-RAW|IIRO|IIU\0|\0MRM",
    "JPEG XL": rb"\xff\x0a|\0\0\0\x0cJXL ",
    "JPEG 2000": rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51",
    "PDF": rb"%PDF",
    "Photoshop": rb"8BPS",
    "an icon (ICO)": rb"\0\0\x01\0",
    "PPM": rb"P[1-7]\s",
    "OpenEXR": rb"\x76\x2f\x31\x01",
    "DICOM": rb".{128}DICM",
    "a ZIP archive": rb"PK\x03\x04",
    "a Git LFS pointer (`git lfs pull` fetches the image)": rb"version https://git-lfs",
    "SVG": rb"\s*(?:<\?xml[^>]*>\s*)?<svg",
    "an HTML page": rb"\s*<(?:!doctype html|html)",
}
_NAMED = {name: re.compile(pattern, re.DOTALL | re.IGNORECASE) for name, pattern in _OTHERS.items()}


def is_heic(content: bytes) -> bool:
    """Whether the file is HEIC, the format of iPhones."""
    return bool(_HEIC.match(content))


def unsupported(content: bytes) -> UnsupportedImageError:
    """The error for a file in none of the formats; names the format if it is a known one."""
    found = next((name for name, start in _NAMED.items() if start.match(content)), None)
    what = f"{found} is not read" if found else "not an image"
    return UnsupportedImageError(f"{what}; send one of {', '.join(FORMATS)}")
