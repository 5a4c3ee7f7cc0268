"""EXIF with cycles, invalid profiles and XMP, in a valid picture, which may get a segmentation."""

import struct
import zlib
from random import Random

from tests.unit.images import chunk

from .family import Family
from .whole import whole_files


def with_metadata(random: Random, number: int) -> bytes:
    exif, profile, xmp = _exif(random), _garbage(random), _xmp(random)
    makers = _jpeg, _png, _webp, _tiff
    return makers[number % len(makers)](random, exif, profile, xmp)


def _exif(random: Random) -> bytes:
    """A directory of random tags, of which many lead into each other, into themselves, or out of
    the block.
    """
    order, mark = random.choice((("<", b"II*\0"), (">", b"MM\0*")))
    count = random.choice((0, 1, 5, 200, 5000))
    entries = b"".join(
        struct.pack(
            f"{order}HHII",
            random.choice(
                (0x0112, 0x8769, 0x8825, 0xA005, 0x014A, 0x010F, random.randrange(65536))
            ),
            random.choice((1, 2, 3, 4, 5, 7, 9, 10, 12, 13, 200)),
            random.choice((0, 1, 1, 2, 1000, 60_000, 2**32 - 1)),
            random.choice((0, 8, 8, 10, 20, 60_000, 2**32 - 1)),
        )
        for _ in range(min(count, 5000))
    )
    start = random.choice((8, 8, 8, 0, 4, 2**31, 2**32 - 1))
    declared = random.choice((count, count, 65535)) & 0xFFFF
    following = random.choice((0, 8, 2**32 - 1))
    return (
        mark
        + struct.pack(f"{order}IH", start, declared)
        + entries
        + struct.pack(f"{order}I", following)
    )


def _garbage(random: Random) -> bytes:
    return random.choice(
        (b"", b"\0", random.randbytes(200), b"\xff" * 60_000, zlib.compress(bytes(10_000_000), 9))
    )


def _xmp(random: Random) -> bytes:
    return random.choice(
        (
            b"",
            b"<" * 60_000,
            b'tiff:Orientation="' * 3000,
            b'<x tiff:Orientation="6"/>',
            b'<!DOCTYPE l [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;&a;">]><l>&b;</l>',
            random.randbytes(1000),
        )
    )


def _jpeg(random: Random, exif: bytes, profile: bytes, xmp: bytes) -> bytes:
    segments = [
        (0xE1, b"Exif\0\0" + exif),
        (0xE2, b"ICC_PROFILE\0" + bytes((random.randrange(256), random.randrange(256))) + profile),
        (0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp),
        (0xE2, b"MPF\0" + exif),
        (0xED, b"Photoshop 3.0\0" + b"8BIM\x03\xed\0\0" + random.randbytes(20)),
        (0xEE, b"Adobe" + random.randbytes(random.choice((0, 7)))),
        (0xFE, profile),
    ]
    random.shuffle(segments)
    parts = (
        bytes((0xFF, marker)) + struct.pack(">H", 2 + len(body[:65533])) + body[:65533]
        for marker, body in segments
    )
    content = whole_files()["jpeg"]
    return content[:2] + b"".join(parts) * random.choice((1, 1, 3)) + content[2:]


def _png(random: Random, exif: bytes, profile: bytes, xmp: bytes) -> bytes:
    chunks = [
        chunk(b"eXIf", exif),
        chunk(b"iCCP", b"name\0\0" + random.choice((profile, zlib.compress(profile)))),
        chunk(b"iCCP", b"name" * random.randrange(50)),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp),
        chunk(b"iTXt", b"key\0\1\0en\0key\0" + zlib.compress(bytes(5_000_000))),
        chunk(
            b"zTXt", b"key\0" + bytes((random.choice((0, 1)),)) + zlib.compress(bytes(5_000_000))
        ),
        chunk(b"tEXt", b"exif\0" + exif),
        chunk(b"tEXt", b"Raw profile type exif\0\nexif\n  10\n" + profile[:500].hex().encode()),
        chunk(
            random.choice((b"pHYs", b"gAMA", b"cHRM", b"sRGB", b"tRNS", b"acTL", b"fcTL", b"PLTE")),
            random.randbytes(3),
        ),
    ]
    random.shuffle(chunks)
    content = whole_files()[random.choice(("png", "png palette"))]
    place = random.choice((33, len(content) - 12))
    return content[:place] + b"".join(chunks[: random.randint(1, 9)]) + content[place:]


def _webp(random: Random, exif: bytes, profile: bytes, xmp: bytes) -> bytes:
    def riff(kind: bytes, body: bytes) -> bytes:
        return kind + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)

    still = whole_files()["webp"][12:]
    header = riff(
        b"VP8X",
        bytes((random.randrange(256), 0, 0, 0))
        + (30).to_bytes(3, "little")
        + (22).to_bytes(3, "little"),
    )
    body = header + riff(b"ICCP", profile) + still + riff(b"EXIF", exif) + riff(b"XMP ", xmp)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def _tiff(random: Random, exif: bytes, profile: bytes, xmp: bytes) -> bytes:
    """Directories that follow each other in a circle, and sub-directories that lead to the
    first.
    """
    content = bytearray(
        whole_files()[random.choice(("tiff", "tiff lzw", "tiff pages"))] + exif + profile + xmp
    )
    (start,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, start)
    struct.pack_into(
        "<I",
        content,
        start + 2 + 12 * count,
        random.choice((start, 8, len(content) - 4, 2**32 - 1)),
    )
    entry = start + 2 + 12 * random.randrange(count)
    kept = struct.unpack_from("<H", content, entry)[0]
    if kept not in (0x100, 0x101, 0x111, 0x117):
        tag = random.choice((0x8769, 0x8825, 0x014A, 0x8773, 0x02BC, 0x0112))
        struct.pack_into(
            "<HHII", content, entry, tag, random.choice((4, 7, 13)), random.choice((1, 1000)), start
        )
    return bytes(content)


FAMILIES = {"metadata": Family(with_metadata, 240)}
