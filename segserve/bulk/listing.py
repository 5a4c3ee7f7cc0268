"""The images of a batch job, listed once in files of the target and divided into blocks.

A block is finished when its part of the table exists. The part is written last and atomically. Its
name depends only on the block. So a job can be killed at any time, and a block that is processed
twice still has one part.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import chain, islice

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet

from .errors import BulkError, printable
from .sources import Source
from .storage import Storage
from .table import TABLE, count_failed

LISTINGS = ".listings"
# File names may be invalid UTF-8.
_SCHEMA = pa.schema([("location", pa.binary()), ("name", pa.binary())])
_CHUNK = 4096


@dataclass(frozen=True)
class Block:
    """Images that are processed together: row group `index` of the listing with number `listing`.

    Attributes:
        images: the number of images to process.
        retry: only process the images that failed in an earlier run.
    """

    listing: int
    index: int
    images: int
    retry: bool = False

    @property
    def part(self) -> str:
        """The file of the block's part of the table."""
        return f"{TABLE}/part-{self.listing:03}-{self.index:07}.parquet"


def block_size(listed: int) -> int:
    """The size of the block that follows the first `listed` images.

    In a short job, small blocks keep all workers busy until the end, and a killed job loses little
    work. In a long job, large blocks limit the table to some ten thousand files.
    """
    return max(1, min(128, listed // 32), listed // 25_000)


def extend_listing(storage: Storage, images: Iterator[Source], *, distinct_stems: bool) -> int:
    """Lists the images that no earlier run has listed, and returns their number.

    Raises:
        BulkError: two images have the same label map file, and `distinct_stems` is true.
    """
    new = _unlisted(storage, images, distinct_stems=distinct_stems)
    first = next(new, None)
    if first is None:
        return 0
    images, listed = chain([first], new), 0
    file_name = _listing_file(len(storage.names(LISTINGS)))
    with storage.writer(file_name) as file, parquet.ParquetWriter(file, _SCHEMA) as writer:
        while block := list(islice(images, block_size(listed))):
            locations = [os.fsencode(image.location) for image in block]
            names = [os.fsencode(image.name) for image in block]
            writer.write_table(pa.table([locations, names], schema=_SCHEMA))
            listed += len(block)
    return listed


def blocks_of(storage: Storage) -> Iterator[Block]:
    """All blocks of a job in order, finished or not."""
    for number in range(len(storage.names(LISTINGS))):
        metadata = _listing(storage, number).metadata
        for index in range(metadata.num_row_groups):
            yield Block(number, index, metadata.row_group(index).num_rows)


def unfinished_blocks(storage: Storage, *, retry_failed: bool = False) -> list[Block]:
    """The blocks without a part of the table, and with `retry_failed` those with failed images."""
    finished = {f"{TABLE}/{name}" for name in storage.names(TABLE)}
    blocks = []
    for block in blocks_of(storage):
        if block.part not in finished:
            blocks.append(block)
        elif retry_failed and (failed := count_failed(storage, block.part)):
            blocks.append(replace(block, images=failed, retry=True))
    return blocks


def images_of(storage: Storage, block: Block) -> list[Source]:
    """The images of a block; with `retry` also those that have not failed."""
    return list(_as_images(_listing(storage, block.listing).read_row_group(block.index)))


def _listing_file(number: int) -> str:
    return f"{LISTINGS}/{number:03}.parquet"


def _listing(storage: Storage, number: int) -> parquet.ParquetFile:
    path = storage.path_of(_listing_file(number))
    return parquet.ParquetFile(path, filesystem=storage.filesystem)


def _unlisted(
    storage: Storage, images: Iterator[Source], *, distinct_stems: bool
) -> Iterator[Source]:
    locations, stems = _Seen(), _Seen()
    for number in range(len(storage.names(LISTINGS))):
        for batch in _listing(storage, number).iter_batches(_CHUNK):
            listed = list(_as_images(batch))
            locations.first_times([image.location for image in listed])
            stems.first_times([image.stem for image in listed])
    while chunk := list(islice(images, _CHUNK)):
        is_new = locations.first_times([image.location for image in chunk])
        new = [image for image, first in zip(chunk, is_new, strict=True) if first]
        is_distinct = stems.first_times([image.stem for image in new])
        for image, first in zip(new, is_distinct, strict=True):
            if distinct_stems and not first:
                raise BulkError(
                    f"{image}: another image becomes the same label map, {printable(image.stem)}; "
                    "rename one, or choose --format rle, which writes no label maps"
                )
        yield from new


class _Seen:
    """A set of texts that stores an 8-byte hash of each. With a million texts, 1 in 30 million jobs
    has a collision.
    """

    def __init__(self) -> None:
        # Sorted, each at least twice as long as the next: every hash is merged only a few times.
        self._runs: list[NDArray[np.uint64]] = []

    def first_times(self, texts: Sequence[str]) -> NDArray[np.bool_]:
        """Adds the texts. Returns bool (N,): whether each text is new."""
        digests = np.array(
            [int.from_bytes(blake2b(os.fsencode(text), digest_size=8).digest()) for text in texts],
            np.uint64,
        )
        is_first = np.zeros(len(texts), np.bool_)
        is_first[np.unique(digests, return_index=True)[1]] = True
        for run in self._runs:
            positions = np.minimum(np.searchsorted(run, digests), len(run) - 1)
            is_first &= run[positions] != digests
        new = np.sort(digests[is_first])
        while self._runs and len(self._runs[-1]) < 2 * len(new):
            # the stable sort merges sorted runs
            new = np.sort(np.concatenate([self._runs.pop(), new]), kind="stable")
        if len(new):
            self._runs.append(new)
        return is_first


def _as_images(rows: pa.Table | pa.RecordBatch) -> Iterator[Source]:
    for location, name in zip(rows["location"].to_pylist(), rows["name"].to_pylist(), strict=True):
        yield Source(os.fsdecode(location), os.fsdecode(name))
