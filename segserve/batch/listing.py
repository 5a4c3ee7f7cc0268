"""Divides the images of a job into blocks, once. A block has the same images in every run."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet

from ..segment.errors import SegmentError
from ..segment.sources import printable
from .job import LISTINGS, TABLE
from .sources import Image
from .storage import Storage

_SCHEMA = pa.schema(
    [("location", pa.binary()), ("name", pa.binary())]
)  # file names may be invalid UTF-8
_CHUNK = 4096


@dataclass(frozen=True)
class Block:
    """A number of images that are processed together: row group `index` of the listing with number
    `listing`.
    """

    listing: int
    index: int
    images: int

    @property
    def part(self) -> str:
        """The block's part of the table. The block is finished if this file exists."""
        return f"{TABLE}/part-{self.listing:03}-{self.index:07}.parquet"


def block_size(listed: int) -> int:
    """The size of the block that follows the first `listed` images.

    Blocks grow with the job. In a short job, small blocks keep all workers busy until the end, and
    a killed job loses little work. In a long job, large blocks limit the table to some ten thousand
    files.
    """
    return max(1, min(128, listed // 32), listed // 25_000)


def extend_listing(storage: Storage, images: Iterator[Image], *, distinct_stems: bool) -> int:
    """Lists the images that no earlier run has listed, and returns their number.

    Args:
        distinct_stems: raise an error if two images have the same label map file.

    Raises:
        SegmentError: two images have the same label map file.
    """
    new = _unlisted(storage, images, distinct_stems=distinct_stems)
    first = next(new, None)
    if first is None:
        return 0
    number, listed = len(_listings(storage)), 0
    with (
        storage.writer(_listing_file(number)) as file,
        parquet.ParquetWriter(file, _SCHEMA) as writer,
    ):
        rows = _chained(first, new)
        while block := list(islice(rows, block_size(listed))):
            writer.write_table(_as_table(block))
            listed += len(block)
    return listed


def blocks_of(storage: Storage) -> Iterator[Block]:
    """All blocks of a job in order, finished or not."""
    for number in range(len(_listings(storage))):
        metadata = _open(storage, number).metadata
        for index in range(metadata.num_row_groups):
            yield Block(number, index, metadata.row_group(index).num_rows)


def unfinished(storage: Storage) -> list[Block]:
    """The blocks without a part of the table."""
    finished = {f"{TABLE}/{name}" for name in storage.names(TABLE)}
    return [block for block in blocks_of(storage) if block.part not in finished]


class Listings:
    """Reads the images of blocks, for a worker."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._files: dict[int, parquet.ParquetFile] = {}

    def images(self, block: Block) -> list[Image]:
        file = self._files.get(block.listing)
        if file is None:
            file = self._files[block.listing] = _open(self._storage, block.listing)
        return list(_as_images(file.read_row_group(block.index)))


def _listings(storage: Storage) -> list[str]:
    return storage.names(LISTINGS)


def _listing_file(number: int) -> str:
    return f"{LISTINGS}/{number:03}.parquet"


def _open(storage: Storage, number: int) -> parquet.ParquetFile:
    return parquet.ParquetFile(
        storage.path(_listing_file(number)), filesystem=storage.place.filesystem
    )


def _unlisted(
    storage: Storage, images: Iterator[Image], *, distinct_stems: bool
) -> Iterator[Image]:
    locations, stems = _Seen(), _Seen()
    for number in range(len(_listings(storage))):
        for batch in _open(storage, number).iter_batches(_CHUNK):
            listed = list(_as_images(batch))
            locations.first_times([_encoded(image.location) for image in listed])
            stems.first_times([_encoded(image.stem) for image in listed])
    while chunk := list(islice(images, _CHUNK)):
        is_new = locations.first_times([_encoded(image.location) for image in chunk])
        new = [image for image, first in zip(chunk, is_new, strict=True) if first]
        if distinct_stems:
            _check_distinct(new, stems)
        yield from new


def _check_distinct(images: Sequence[Image], stems: "_Seen") -> None:
    is_first = stems.first_times([_encoded(image.stem) for image in images])
    for image, first in zip(images, is_first, strict=True):
        if not first:
            raise SegmentError(
                f"{printable(image.location)}: another image becomes the same label map, "
                f"{printable(image.stem)}; "
                "rename one, or ask for --format rle, which makes none"
            )


class _Seen:
    """A set of texts that stores an 8-byte hash of each. With a million texts, 1 in 30 million jobs
    has a collision.
    """

    def __init__(self) -> None:
        # Sorted runs, each at least twice as long as the next. So every hash is merged only a few
        # times.
        self._runs: list[NDArray[np.uint64]] = []

    def first_times(self, texts: Sequence[bytes]) -> NDArray[np.bool_]:
        """Adds the texts. Returns bool (N,): whether each text is new."""
        digests = np.array(
            [int.from_bytes(blake2b(text, digest_size=8).digest()) for text in texts], np.uint64
        )
        is_first = np.zeros(len(texts), np.bool_)
        is_first[np.unique(digests, return_index=True)[1]] = True
        for run in self._runs:
            is_first &= ~_within(digests, run)
        self._add(np.sort(digests[is_first]))
        return is_first

    def _add(self, run: NDArray[np.uint64]) -> None:
        while self._runs and len(self._runs[-1]) < 2 * len(run):
            run = np.sort(
                np.concatenate([self._runs.pop(), run]), kind="stable"
            )  # the stable sort merges sorted runs
        self._runs.append(run)


def _within(digests: NDArray[np.uint64], run: NDArray[np.uint64]) -> NDArray[np.bool_]:
    place = np.searchsorted(run, digests)
    found = place < len(run)
    found[found] = run[place[found]] == digests[found]
    return found


def _chained(first: Image, rest: Iterator[Image]) -> Iterator[Image]:
    yield first
    yield from rest


def _as_table(images: Sequence[Image]) -> pa.Table:
    columns = [
        [_encoded(image.location) for image in images],
        [_encoded(image.name) for image in images],
    ]
    return pa.table(columns, schema=_SCHEMA)


def _as_images(rows: pa.Table | pa.RecordBatch) -> Iterator[Image]:
    for location, name in zip(rows["location"].to_pylist(), rows["name"].to_pylist(), strict=True):
        yield Image(_decoded(location), _decoded(name))


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", errors="surrogateescape")


def _decoded(text: bytes) -> str:
    return text.decode("utf-8", errors="surrogateescape")
