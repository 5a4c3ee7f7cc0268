"""Headers that declare absurd sizes, depths and strides, over next to no pixels."""

import struct
from random import Random

from tests.unit.images import bmp_header, gif_of_size, png

from .family import Family
from .whole import run_length_bmp, whole_files

SIDES_PX = (
    0,
    1,
    2,
    255,
    4096,
    4097,
    16_383,
    16_384,
    32_767,
    32_768,
    65_500,
    65_535,
    2**24,
    2**31 - 1,
    2**31,
    2**32 - 1,
)


def declared(random: Random, number: int) -> bytes:
    makers = _png, _jpeg, _gif, _webp, _bmp, _tiff, _bmp_runs, _avif
    return makers[number % len(makers)](random)


def _side(random: Random, limit: int) -> int:
    side = random.choice([side for side in SIDES_PX if side < limit])
    return min(limit - 1, max(0, side + random.choice((0, 0, -1, 1))))


def _png(random: Random) -> bytes:
    bits, color = random.choice((1, 2, 4, 8, 16, 3, 255)), random.choice((0, 2, 3, 4, 6, 7))
    return png(
        _side(random, 2**32), _side(random, 2**32), bits=bits, color=color, scanlines=bytes(1000)
    )


def _jpeg(random: Random) -> bytes:
    content = bytearray(whole_files()[random.choice(("jpeg", "jpeg progressive", "jpeg cmyk"))])
    frame = max(content.find(b"\xff\xc0"), content.find(b"\xff\xc2"))
    content[frame + 5 : frame + 9] = struct.pack(">HH", _side(random, 2**16), _side(random, 2**16))
    if random.random() < 0.5:
        content[frame + 4] = random.choice((1, 8, 12, 16))  # bits
        content[frame + 11] = random.choice(
            (0x00, 0x11, 0x44, 0xFF)
        )  # sampling of the first component
    return bytes(content)


def _avif(random: Random) -> bytes:
    """Container and frame disagree about the size."""
    content = bytearray(whole_files()["avif"])
    place = content.index(b"ispe") + 8
    content[place : place + 8] = struct.pack(">II", _side(random, 2**32), _side(random, 2**32))
    return bytes(content)


def _gif(random: Random) -> bytes:
    content = bytearray(gif_of_size(_side(random, 2**16), _side(random, 2**16)))
    if random.random() < 0.5:  # a frame that lies outside the screen
        content[14:22] = struct.pack("<HHHH", *(_side(random, 2**16) for _ in range(4)))
    return bytes(content)


def _webp(random: Random) -> bytes:
    content = bytearray(whole_files()[random.choice(("webp alpha", "webp animated"))])
    for place in (24, 27):  # width and height of VP8X, less one
        content[place : place + 3] = (_side(random, 2**24)).to_bytes(3, "little")
    return bytes(content)


def _bmp(random: Random) -> bytes:
    content = bytearray(bmp_header(0, 0) + bytes(1000))
    sides = (_side(random, 2**31) * random.choice((1, -1)) for _ in range(2))
    content[18:26] = struct.pack("<ii", *sides)
    content[28:30] = struct.pack("<H", random.choice((0, 1, 4, 8, 16, 24, 32, 65535)))
    content[30:34] = struct.pack("<I", random.choice((0, 1, 2, 3, 4, 6, 2**32 - 1)))
    content[46:50] = struct.pack("<I", random.choice((0, 2, 256, 2**31, 2**32 - 1)))  # colours
    content[10:14] = struct.pack(
        "<I", random.choice((0, 14, 54, 2**31, 2**32 - 1))
    )  # where pixels begin
    return bytes(content)


def _bmp_runs(random: Random) -> bytes:
    return run_length_bmp(
        _side(random, 2**25),
        _side(random, 2**10),
        random.randbytes(random.choice((2, 50, 5000))),
        bits=random.choice((4, 8)),
    )


_TIFF_TAGS = (
    0x100,
    0x101,
    0x102,
    0x103,
    0x106,
    0x111,
    0x115,
    0x116,
    0x117,
    0x11C,
    0x13D,
    0x142,
    0x143,
    0x144,
    0x152,
    0x153,
)


def _tiff(random: Random) -> bytes:
    """Up to three tags with other types, counts and values; any may turn up twice."""
    names = [name for name in whole_files() if name.startswith("tiff") and "big" not in name]
    content = bytearray(whole_files()[random.choice(names)])
    (start,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, start)
    for _ in range(random.randint(1, 3)):
        entry = start + 2 + 12 * random.randrange(count)
        tag = random.choice((*struct.unpack_from("<H", content, entry), random.choice(_TIFF_TAGS)))
        kind = random.choice((1, 2, 3, 3, 4, 4, 5, 12, 13, 99))
        values = random.choice((0, 1, 1, 1, 2, 3, 65_536, 2**31, 2**32 - 1))
        content[entry : entry + 12] = struct.pack("<HHII", tag, kind, values, _side(random, 2**32))
    return bytes(content)


FAMILIES = {"sizes": Family(declared, 350)}
