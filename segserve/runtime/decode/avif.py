"""The size of the frames of an AVIF file.

The container of an AVIF file declares the size of the image, and each AV1 frame declares a size of
its own. The decoder allocates memory for the frame. So both sizes are limited.

Sources: ISO/IEC 14496-12 (boxes), the AVIF specification 1.1, and the AV1 bitstream specification,
section 5.5 (sequence header).
"""

import struct
from collections.abc import Iterator, Mapping

from ..errors import CorruptImageError, UnsupportedImageError

_MAX_PARTS = 10_000  # boxes beside each other, extents of all items; usually below 20
_MAX_ILOC_BYTES = 2**16
_FULL_BOX = 4  # bytes of version and flags
_READ_BOXES = (b"meta", b"iinf", b"iloc", b"idat")
_SEQUENCE_HEADER = 1  # type of the open bitstream unit (OBU) that declares the frame size


def frame_pixels(content: bytes) -> int:
    """The sum of width times height over all AV1 images of the file: tiles, alpha, thumbnails."""
    try:
        boxes = _named_boxes(content, 0, len(content))
        if b"moov" in boxes:
            raise UnsupportedImageError("animated AVIF is not read; send one of its frames")
        meta = _named_boxes(content, boxes[b"meta"][0] + _FULL_BOX, boxes[b"meta"][1])
        kinds = _item_kinds(content, *meta[b"iinf"])
        images = (
            data
            for item_id, data in _items(content, meta[b"iloc"], meta.get(b"idat", (0, 0))[0])
            if kinds.get(item_id) == b"av01"
        )
        return sum(_largest_frame(data) for data in images)
    except (KeyError, IndexError, ValueError, struct.error) as error:
        raise CorruptImageError(
            "the AVIF file cannot be read: its boxes make no sense; save it again and send that"
        ) from error


def _named_boxes(content: bytes, start: int, end: int) -> dict[bytes, tuple[int, int]]:
    """Type -> start and end of the boxes that are read here; each may occur once."""
    found: dict[bytes, tuple[int, int]] = {}
    for kind, place in _boxes(content, start, end):
        if kind in found and kind in _READ_BOXES:
            raise ValueError("a box occurs twice")
        found[kind] = place
    return found


def _boxes(content: bytes, start: int, end: int) -> Iterator[tuple[bytes, tuple[int, int]]]:
    for _ in range(_MAX_PARTS):
        if start + 8 > end:
            return
        size, kind = struct.unpack_from(">I4s", content, start)
        head = 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", content, start + 8)
            head = 16
        size = size or end - start  # 0: up to the end
        if size < head:
            raise ValueError("a box is shorter than its head")
        yield kind, (start + head, min(end, start + size))
        start += size
    raise ValueError("too many boxes")


def _item_kinds(content: bytes, start: int, end: int) -> Mapping[int, bytes]:
    start += _FULL_BOX + (2 if content[start] == 0 else 4)
    kinds = {}
    for _, (info, _) in _boxes(content, start, end):
        wide = content[info] == 3  # version of `infe`
        item_id, _, kind = struct.unpack_from(">IH4s" if wide else ">HH4s", content, info + 4)
        kinds[item_id] = kind
    return kinds


def _items(content: bytes, iloc: tuple[int, int], idat: int) -> Iterator[tuple[int, bytes]]:
    """The id and the data of every item, of the box `iloc`."""
    start, end = iloc
    version, sizes = content[start], content[start + 4 : start + 6]
    offset_size, length_size, base_size = sizes[0] >> 4, sizes[0] & 15, sizes[1] >> 4
    index_size = sizes[1] & 15 if version else 0
    bits = _Bits(content[start + 6 : min(end, start + _MAX_ILOC_BYTES)])

    def number(size_bytes: int) -> int:
        return bits.read(8 * size_bytes)

    wide = 4 if version == 2 else 2
    parts_left, bytes_left = _MAX_PARTS, 2 * len(content)  # items may share some of their data
    for _ in range(number(wide)):
        item_id = number(wide)
        from_idat = version > 0 and number(2) & 15 == 1
        number(2)  # data reference
        base = number(base_size) + (idat if from_idat else 0)
        data = []
        for _ in range(number(2)):
            number(index_size)
            offset, length = base + number(offset_size), number(length_size)
            data.append(content[offset : offset + length if length else None])
            parts_left, bytes_left = parts_left - 1, bytes_left - len(data[-1])
            if parts_left < 0 or bytes_left < 0:
                raise ValueError("items have more data than the file")
        yield item_id, b"".join(data)


def _largest_frame(data: bytes) -> int:
    """The largest width times height that a sequence header in the OBUs declares."""
    position, largest = 0, 0
    while position < len(data):
        head = data[position]
        position += 2 if head & 4 else 1  # an extension byte
        size = len(data) - position
        if head & 2:  # has a size field, in LEB128
            size = 0
            for shift in range(0, 56, 7):
                part = data[position]
                position += 1
                size |= (part & 127) << shift
                if part < 128:
                    break
        if head >> 3 & 15 == _SEQUENCE_HEADER:
            largest = max(largest, _declared_pixels(data[position : position + size]))
        position += size
    return largest


def _declared_pixels(header: bytes) -> int:
    bits = _Bits(header[:512])
    bits.read(4)  # profile, still picture
    if bits.read(1):  # reduced header
        bits.read(5)
    else:
        delay_bits = _read_timing(bits)
        has_display_delay = bits.read(1)
        for _ in range(bits.read(5) + 1):
            bits.read(12)
            if bits.read(5) > 7:
                bits.read(1)
            if delay_bits and bits.read(1):
                bits.read(2 * delay_bits + 1)
            if has_display_delay and bits.read(1):
                bits.read(4)
    width_bits, height_bits = bits.read(4) + 1, bits.read(4) + 1
    return (bits.read(width_bits) + 1) * (bits.read(height_bits) + 1)


def _read_timing(bits: "_Bits") -> int:
    """Skips the timing information. Returns the bits of a decoder delay; 0 without one."""
    if not bits.read(1):
        return 0
    bits.read(64)
    if bits.read(1):  # equal picture interval: a number in uvlc
        zeros = 0
        while not bits.read(1):
            zeros += 1
        bits.read(min(zeros, 32))
    if not bits.read(1):
        return 0
    delay_bits = bits.read(5) + 1
    bits.read(42)
    return delay_bits


class _Bits:
    """Reads numbers of some bits each, the highest bit first."""

    def __init__(self, content: bytes) -> None:
        self._value, self._left = int.from_bytes(content, "big"), 8 * len(content)

    def read(self, count: int) -> int:
        if count > self._left:
            raise ValueError("the header ends too early")
        self._left -= count
        return self._value >> self._left & (1 << count) - 1
