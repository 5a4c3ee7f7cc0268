"""Little files that want much memory or time, and large ones that want far more than their size.

Each is as bad as the largest request, 64 MiB, makes it; `test_in_process` holds all of them to 5 s
and 1.5 GB.
"""

import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

from tests.unit.images import chunk, encoded, gif_of_size, noise, png

from .family import listed
from .whole import run_length_bmp, whole_files

MOST_BYTES = 60 * 2**20


def _often(part: bytes) -> bytes:
    return part * (MOST_BYTES // len(part))


# JPEG


def _in_jpeg(parts: bytes) -> bytes:
    return b"\xff\xd8" + parts + whole_files()["jpeg"][2:]


def _segment(marker: int, body: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", 2 + len(body)) + body


def _scans(count: int, *, side_px: int = 4096, progressive: bool = True) -> bytes:
    """The last scan of a grey image again and again: some bytes each, and a pass over every
    pixel.
    """
    content = encoded(Image.new("RGB", (side_px, side_px)), "JPEG", progressive=progressive)
    last = content.rfind(b"\xff\xda")
    scan = content[last:-2]
    return content[:-2] + scan * min(count, MOST_BYTES // len(scan)) + b"\xff\xd9"


def jpeg_of_frame(marker: int, side_px: int, *, scans: int = 1) -> bytes:
    """A grey JPEG with this start of frame, of few bytes: its scans hold next to nothing."""
    frame = struct.pack(">BHHB", 8, side_px, side_px, 1) + bytes((1, 0x11, 0))
    tables = _segment(0xDB, b"\0" + b"\1" * 64)
    tables += b"".join(_segment(0xC4, bytes((kind, 1, *[0] * 16))) for kind in (0, 0x10))
    first = (1, 0, 0) if marker & 3 == 3 else (0, 0, 0)  # lossless: the predictor, else the band
    bands = [first, *((1, 63, 13 if bit == 13 else (bit + 1) << 4 | bit) for bit in _bits(scans))]
    parts = [_segment(0xDA, bytes((1, 1, 0, *band))) + bytes(range(1, 30)) for band in bands]
    return b"\xff\xd8" + tables + _segment(marker, frame) + b"".join(parts) + b"\xff\xd9"


def _bits(scans: int) -> list[int]:
    """The lowest bit of every scan but the first one, from 13 down to 0, again and again."""
    return [13 - number % 14 for number in range(scans - 1)]


def _lossless(side_px: int) -> bytes:
    head, tail = jpeg_of_frame(0xC3, side_px)[:-31], bytes(side_px * side_px // 8 + 1)
    return head + tail + b"\xff\xd9"


def _hidden_scans() -> bytes:
    """Each scan behind a table that holds what looks like the end of the image."""
    content = _scans(0)
    last = content.rfind(b"\xff\xda")
    table = _segment(0xE5, b"\xff\xd9") + content[last:-2]
    return content[:-2] + table * 5000 + b"\xff\xd9"


_JPEG = [
    lambda: _in_jpeg(_often(_segment(0xE5, b""))),
    lambda: _in_jpeg(_often(_segment(0xFE, b""))),
    lambda: _in_jpeg(_often(_segment(0xE1, b"Exif\0\0" + b"a" * 65_000))),
    lambda: _in_jpeg(
        _often(
            _segment(
                0xE1, b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\1\0\0\7\0\0\xff\0\0\0\0\0" * 5400
            )
        )
    ),
    lambda: _in_jpeg(_often(_segment(0xE2, b"ICC_PROFILE\0\1\1" + bytes(100)))),
    lambda: _in_jpeg(
        _often(
            _segment(0xE2, b"MPF\0II*\0\x08\0\0\0\xff\xff" + b"\1\xb0\7\0\0\xff\0\0\0\0\0\0" * 5400)
        )
    ),
    lambda: _in_jpeg(_often(_segment(0xDB, bytes(65 * 1000)))),
    lambda: _in_jpeg(_often(_segment(0xC4, b"\0" + bytes(16)))),
    lambda: _in_jpeg(_often(_segment(0xDD, b"\0\1"))),
    lambda: _in_jpeg(_often(whole_files()["jpeg"][whole_files()["jpeg"].find(b"\xff\xc0") :][:19])),
    lambda: _in_jpeg(_often(b"\xff")),
    lambda: _in_jpeg(_often(b"\xff\x01")),
    lambda: _in_jpeg(_often(b"\xff\xd8")),
    lambda: _in_jpeg(_often(b"\xff\0")),
    lambda: _in_jpeg(_often(b"\xff\xd0")),
    lambda: _in_jpeg(b"\xe5\0\2" + _often(b"a")),
    lambda: _scans(80),
    lambda: _scans(1000),
    lambda: _scans(600_000),
    lambda: _scans(80, progressive=False),
    lambda: _scans(5000, progressive=False),
    lambda: _scans(80, side_px=8192),
    lambda: _scans(19, side_px=8192),  # 25 in all
    lambda: _scans(80, side_px=8192, progressive=False),
    lambda: jpeg_of_frame(0xC2, 8192, scans=25),  # progressive
    lambda: jpeg_of_frame(0xC2, 8192, scans=100),
    lambda: jpeg_of_frame(0xCA, 8192, scans=100),  # progressive, arithmetic
    lambda: jpeg_of_frame(0xC9, 8192),  # sequential, arithmetic
    lambda: _lossless(1500),
    lambda: _lossless(8192),
    _hidden_scans,
    lambda: whole_files()["jpeg"] + _often(whole_files()["jpeg"]),
    lambda: whole_files()["jpeg"][:-2] + _often(b"\xff\xd0"),
    lambda: whole_files()["jpeg"][:-2] + _often(b"\xff\xff"),
]

# PNG


def _in_png(chunks: bytes, *, late: bool = False) -> bytes:
    content = whole_files()["png"]
    place = len(content) - 12 if late else 33
    return content[:place] + chunks + content[place:]


def _zipped(megabytes: int) -> bytes:
    """So many megabytes of noughts as a zlib stream without an end, which no decoder may get to."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    block = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return b"\x78\xda" + block * megabytes


def _png_of_idats() -> bytes:
    pixels = zlib.compress(bytes(4096 * (1 + 3 * 4096)), 0)
    parts = (chunk(b"IDAT", pixels[start : start + 160]) for start in range(0, len(pixels), 160))
    return png(4096, 4096)[:33] + b"".join(parts) + chunk(b"IEND", b"")


def _frames_bomb(frames: int) -> bytes:
    """An animation in which every frame is as large as a picture may be."""
    packed = zlib.compress(bytes(4096 * (1 + 4096)), 9)
    header = struct.pack(">IIBBBBB", 4096, 4096, 8, 0, 0, 0, 0)
    parts = [
        b"\x89PNG\r\n\x1a\n",
        chunk(b"IHDR", header),
        chunk(b"acTL", struct.pack(">II", frames, 0)),
    ]
    for frame in range(frames):
        control = struct.pack(">IIIIIHHBB", max(0, 2 * frame - 1), 4096, 4096, 0, 0, 1, 10, 0, 0)
        data = (
            chunk(b"fdAT", struct.pack(">I", 2 * frame) + packed)
            if frame
            else chunk(b"IDAT", packed)
        )
        parts += [chunk(b"fcTL", control), data]
    return b"".join(parts) + chunk(b"IEND", b"")


_PNG = [
    lambda: _in_png(_often(chunk(b"prVt", b""))),
    lambda: _in_png(_often(chunk(b"prVt", b"")), late=True),
    lambda: _in_png(_often(chunk(b"tEXt", b"k\0v"))),
    lambda: _in_png(_often(chunk(b"tEXt", b"k\0v")), late=True),
    lambda: _in_png(_often(chunk(b"PLTE", bytes(3)))),
    lambda: _in_png(_often(chunk(b"PLTE", bytes(3 * 256)))),
    lambda: _in_png(_often(chunk(b"tRNS", bytes(6)))),
    lambda: _in_png(_often(chunk(b"IHDR", whole_files()["png"][16:29]))),
    lambda: _in_png(_often(chunk(b"IDAT", b""))),
    lambda: _in_png(_often(chunk(b"IDAT", b"")), late=True),
    lambda: _in_png(chunk(b"iCCP", b"name\0\0" + _zipped(1000))),
    lambda: _in_png(_often(chunk(b"iCCP", b"name\0\0" + zlib.compress(bytes(1_000_000), 9)))),
    lambda: _in_png(chunk(b"zTXt", b"key\0\0" + _zipped(1000))),
    lambda: _in_png(chunk(b"iTXt", b"key\0\1\0\0\0" + _zipped(1000))),
    lambda: _in_png(_often(chunk(b"zTXt", b"key\0\0" + zlib.compress(bytes(1_000_000), 9)))),
    lambda: _in_png(chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + _often(b"tiff:Orientation="))),
    lambda: _in_png(
        chunk(b"eXIf", b"II*\0\x08\0\0\0\xff\xff" + _often(b"\1\0\1\0\0\0\0\1\0\0\0\0"))
    ),
    lambda: png(4, 4, scanlines=b"\0" * 2**20),
    lambda: png(4, 4)[:33] + chunk(b"IDAT", _zipped(4000)) + chunk(b"IEND", b""),
    lambda: png(4096, 4096, bits=16, color=6, scanlines=bytes(4096 * (1 + 8 * 4096))),
    lambda: png(2**24, 1, bits=16, color=6, scanlines=bytes(1 + 8 * 2**24)),
    lambda: png(1, 2**24, bits=1, color=0, scanlines=bytes(2 * 2**24)),
    lambda: png(2**31 - 1, 2**31 - 1),
    lambda: png(65_535, 65_535, bits=1, color=0, scanlines=bytes(1000)),
    lambda: _frames_bomb(400),
    _png_of_idats,
]

# GIF, WebP, BMP


def _in_gif(blocks: bytes) -> bytes:
    content = whole_files()["gif"]
    frame = content.find(b",", 13 + 3 * 2 ** (content[10] % 8 + 1))
    return content[:frame] + blocks + content[frame:]


def _in_webp(chunks: bytes) -> bytes:
    header = (
        b"VP8X"
        + struct.pack("<I", 10)
        + bytes((0x2C, 0, 0, 0))
        + (30).to_bytes(3, "little")
        + (22).to_bytes(3, "little")
    )
    body = header + whole_files()["webp"][12:] + chunks
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def _animated_webp(width_px: int, height_px: int) -> bytes:
    content = bytearray(whole_files()["webp animated"])
    content[24:30] = (width_px - 1).to_bytes(3, "little") + (height_px - 1).to_bytes(3, "little")
    return bytes(content)


def _webp_of_frames() -> bytes:
    content = whole_files()["webp animated"]
    frame = content.find(b"ANMF")
    end = frame + 8 + int.from_bytes(content[frame + 4 : frame + 8], "little")
    body = content[12:frame] + _often(content[frame:end])
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


_OTHERS = [
    lambda: _in_gif(b"!\xfe" + _often(b"\xff" + bytes(255)) + b"\0"),
    lambda: _in_gif(b"!\xfe" + _often(b"\1a") + b"\0"),
    lambda: _in_gif(_often(b"!\xfe\1a\0")),
    lambda: _in_gif(_often(b"!\1\0")),
    lambda: _in_gif(_often(b"!\xff\x0bNETSCAPE2.0\3\1\0\0\0")),
    lambda: _in_gif(_often(b"!\xf9\4\0\0\0\0\0")),
    lambda: whole_files()["gif"][:-1] + _often(whole_files()["gif animated"][13:-1]) + b";",
    lambda: gif_of_size(65_535, 65_535),
    lambda: gif_of_size(4096, 4096),
    lambda: encoded(Image.new("P", (4096, 4096)), "GIF"),
    lambda: _in_webp(_often(b"XMP \0\0\0\0")),
    lambda: _in_webp(_often(b"junk\0\0\0\0")),
    lambda: _in_webp(
        b"EXIF"
        + struct.pack("<I", MOST_BYTES)
        + b"II*\0\x08\0\0\0\xff\xff"
        + bytes(MOST_BYTES - 10)
    ),
    _webp_of_frames,
    lambda: _animated_webp(16_384, 16_384),
    lambda: _animated_webp(2**24, 2**24),
    lambda: _animated_webp(4096, 4096),
    lambda: encoded(Image.new("RGB", (4096, 4096)), "WEBP", lossless=True, quality=0, method=0),
    lambda: run_length_bmp(8 * 2**20, 1, b"\0\2\0\xff\0\1"),
    lambda: run_length_bmp(2**24, 1, b"\0\2\xff\xff" * 100),
    lambda: run_length_bmp(65_535, 255, b"\0\2\xff\xff" * 100),
    lambda: run_length_bmp(100, 100, _often(b"\0\0")),
    lambda: run_length_bmp(4096, 4096, _often(b"\1\1")),
    lambda: run_length_bmp(4096, 4096, b"\1\1" * 2_000_000),
    lambda: run_length_bmp(4096, 4096, b"\xff\1" * 2_000_000, bits=4),
    lambda: run_length_bmp(4096, 4096, b"\0\0" * 2_000_000),
    lambda: run_length_bmp(4096, 4096, b"\0\2\0\0" * 1_000_000),
    lambda: run_length_bmp(65_536, 256, b"\0\2\1\0\0\0" * 600_000),
]

# TIFF


def tiff(tags: dict[int, tuple[int, int, int]], content: bytes = b"") -> bytes:
    """A little-endian TIFF of these tags (type, count, value or offset); `content` begins behind
    the directory.
    """
    entries = b"".join(struct.pack("<HHII", tag, *tags[tag]) for tag in sorted(tags))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + content


def _grey(
    width_px: int, height_px: int, **more: tuple[int, int, int]
) -> dict[int, tuple[int, int, int]]:
    tags = {
        0x100: (4, 1, width_px),
        0x101: (4, 1, height_px),
        0x102: (3, 1, 8),
        0x103: (3, 1, 1),
        0x106: (3, 1, 1),
    }
    return {**tags, 0x115: (3, 1, 1), **{int(name[1:], 16): value for name, value in more.items()}}


def _overlapping(count: int, size_bytes: int, kind: int = 7) -> bytes:
    tags = _grey(4, 4, x111=(4, 1, 8), x116=(4, 1, 4), x117=(4, 1, 16))
    return tiff(
        {
            **tags,
            **{
                40_000 + tag: (kind, size_bytes // (8 if kind == 5 else 1), 8)
                for tag in range(count)
            },
        },
        bytes(size_bytes),
    )


def _strips(count: int) -> bytes:
    at = 8 + 2 + 12 * 9 + 4
    tags = _grey(1, count, x111=(4, count, at), x116=(4, 1, 1), x117=(4, count, at))
    return tiff(tags, struct.pack("<I", 8) * count)


def _tiles(side_px: int, tile_px: int, compression: int = 8) -> bytes:
    """One tile far larger than the image, of noughts that pack well."""
    at = 8 + 2 + 12 * 10 + 4
    packed = _zipped(min(4000, tile_px * tile_px // 2**20))
    tags = _grey(
        side_px,
        side_px,
        x142=(4, 1, tile_px),
        x143=(4, 1, tile_px),
        x144=(4, 1, at),
        x145=(4, 1, len(packed)),
    )
    return tiff({**tags, 0x103: (3, 1, compression)}, packed)


def _strip_of(packed: bytes, compression: int, side_px: int = 4096) -> bytes:
    at = 8 + 2 + 12 * 9 + 4
    tags = _grey(side_px, side_px, x111=(4, 1, at), x116=(4, 1, side_px), x117=(4, 1, len(packed)))
    return tiff({**tags, 0x103: (3, 1, compression)}, packed)


def _of_pages(count: int) -> bytes:
    page = b"".join(struct.pack("<HHII", *entry) for entry in ((0x100, 4, 1, 1), (0x101, 4, 1, 1)))
    size = 2 + len(page) + 4
    pages = (
        struct.pack("<H", 2) + page + struct.pack("<I", 8 + (number + 1) * size)
        for number in range(count)
    )
    return b"II*\0" + struct.pack("<I", 8) + b"".join(pages)


_TIFF = [
    lambda: _overlapping(1000, 2**20),
    lambda: _overlapping(20_000, 20 * 2**20),
    lambda: _overlapping(3, MOST_BYTES, kind=5),
    lambda: _strips(2**16),
    lambda: _strips(2**22),
    lambda: _tiles(16, 4096),
    lambda: _tiles(16, 40_000),
    lambda: _tiles(16, 2**31 - 16),
    lambda: _tiles(4096, 16),
    lambda: _strip_of(_zipped(4000), 8),
    lambda: _strip_of(_zipped(16), 8),
    lambda: _strip_of(_zipped(16), 34925),  # LZMA
    lambda: _strip_of(_scans(80), 7),
    lambda: _strip_of(_scans(5000), 7),
    lambda: _strip_of(_scans(80), 6),
    lambda: _of_pages(2**20),
    lambda: tiff(dict.fromkeys(range(0x100, 0x160), (4, 2**16, 8)), bytes(2**19)),
    lambda: tiff(_grey(2**24, 1, x111=(4, 1, 8), x116=(4, 1, 2**32 - 1), x117=(4, 1, 2**32 - 1))),
    lambda: tiff({**_grey(4096, 4096, x111=(4, 1, 8)), 0x115: (3, 1, 65_535)}),
]

# The largest allowed pictures in all formats that are read: they get a segmentation within the same
# bounds.


def _largest(mode: str, file_format: str, **options: object) -> Callable[[], bytes]:
    def make() -> bytes:
        pixels = np.tile(noise(64, 64), (64, 64, 1))
        return encoded(Image.fromarray(pixels).convert(mode), file_format, **options)

    return make


_LARGEST = [
    _largest("RGB", "JPEG"),
    _largest("RGB", "JPEG", progressive=True, subsampling=0),
    _largest("CMYK", "JPEG"),
    _largest("RGB", "PNG", compress_level=1),
    _largest("RGBA", "TIFF", compression="tiff_lzw"),
    _largest("RGB", "GIF"),
    _largest("RGB", "WEBP", quality=20, method=0),
]

FAMILIES = {"bombs": listed([*_JPEG, *_PNG, *_OTHERS, *_TIFF]), "largest": listed(_LARGEST)}
