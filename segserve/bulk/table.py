"""The files of a batch job: the listings of its images, and the table of its results.

The images are listed once and divided into blocks. A block is finished when its part of the table
exists, a Parquet file with one row per image. The part is written last and atomically. Its name
depends only on the block. So a job can be killed at any time, and a block that is processed twice
still has one part.
"""

import io
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from itertools import chain, islice
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import dataset, parquet

from ..runtime.encode.mask import LabelMap, encode_rle
from ..runtime.record import ModelRecord
from ..schema.response import ClassArea
from .sources import Source
from .storage import BulkError, Storage, printable, storable

TABLE = "table"
SEGMENTED, FAILED = "segmented", "failed"
LISTINGS = ".listings"
# File names may be invalid UTF-8.
_LISTED = pa.schema([("location", pa.binary()), ("name", pa.binary())])
_CHUNK = 4096

_CLASS = pa.struct(
    [
        ("id", pa.uint8()),
        ("label", pa.string()),
        ("pixels", pa.int64()),
        ("fraction", pa.float64()),
        ("confidence", pa.float64()),
    ]
)
SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("labels", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("status", pa.string()),
        ("error_code", pa.string()),
        ("error_message", pa.string()),
        ("classes", pa.list_(_CLASS)),
        ("rle", pa.list_(pa.struct([("id", pa.uint8()), ("counts", pa.string())]))),
        ("model", pa.string()),
        ("model_version", pa.string()),
        ("milliseconds", pa.float64()),
    ]
)
"""`labels` is the label map's path below the target. `rle` is separate, so that `classes` can be
read without it.
"""

Row = dict[str, Any]


def segmented_row(
    image: Source, label_map: LabelMap, classes: Sequence[ClassArea], record: ModelRecord
) -> Row:
    height_px, width_px = label_map.shape
    masks = encode_rle(label_map, [area.id for area in classes])
    return _row(image, record) | {
        "status": SEGMENTED,
        "width": width_px,
        "height": height_px,
        "classes": [{"label": record.labels[area.id], **area.model_dump()} for area in classes],
        "rle": [{"id": class_id, "counts": mask["counts"]} for class_id, mask in masks.items()],
    }


def failed_row(image: Source, code: str, message: str, record: ModelRecord) -> Row:
    return _row(image, record) | {"status": FAILED, "error_code": code, "error_message": message}


def encode_part(rows: Sequence[Row]) -> bytes:
    buffer = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(list(rows), schema=SCHEMA), buffer, compression="zstd")
    return buffer.getvalue()


def decode_part(part: bytes) -> list[Row]:
    rows: list[Row] = parquet.read_table(io.BytesIO(part)).to_pylist()
    return rows


def count_failed(storage: Storage, part: str) -> int:
    """The number of failed images in a file of the table."""
    failed, path = [("status", "=", FAILED)], storage.path_of(part)
    return int(parquet.read_table(path, filesystem=storage.filesystem, filters=failed).num_rows)


@dataclass(frozen=True)
class ClassTotal:
    """One class in the whole table: `fraction` of all images' pixels, 0..1, in `images` images."""

    id: int
    label: str
    pixels: int
    fraction: float
    images: int


@dataclass(frozen=True)
class Summary:
    """The summary of a table.

    Attributes:
        left: the number of images without a row.
        failures: the number of failed images by error code.
        left_out: the number of files in the source that are not images, by suffix.
        seconds, images_per_second: of this run, from the start of its first worker.
    """

    images: int
    segmented: int
    failed: int
    left: int
    failures: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    classes: tuple[ClassTotal, ...] = ()
    seconds: float = 0.0
    images_per_second: float = 0.0


def summarize(
    storage: Storage, record: ModelRecord, *, images: int, done: int, seconds: float
) -> Summary:
    """Summarises a job with this number of images. This run has processed `done` in `seconds`."""
    failures, rows = Counter[str](), 0
    pixels, occurrences = np.zeros(256, np.int64), np.zeros(256, np.int64)
    for batch in _batches(storage):
        rows += batch.num_rows
        failures.update(code for code in batch.column("error_code").to_pylist() if code is not None)
        classes = batch.column("classes").flatten()
        ids = classes.field("id").to_numpy(zero_copy_only=False)
        np.add.at(pixels, ids, classes.field("pixels").to_numpy(zero_copy_only=False))
        np.add.at(occurrences, ids, 1)
    totals = [
        ClassTotal(
            id=class_id,
            label=record.labels[class_id],
            pixels=int(pixels[class_id]),
            fraction=round(float(pixels[class_id] / pixels.sum()), 6),
            images=int(occurrences[class_id]),
        )
        for class_id in np.flatnonzero(pixels).tolist()
    ]
    failed = sum(failures.values())
    return Summary(
        images=images,
        segmented=rows - failed,
        failed=failed,
        left=images - rows,
        failures=dict(failures.most_common()),
        classes=tuple(sorted(totals, key=lambda total: (-total.pixels, total.id))),
        seconds=round(seconds, 3),
        images_per_second=round(done / seconds, 3) if seconds else 0.0,
    )


def _batches(storage: Storage) -> Any:  # noqa: ANN401 - pyarrow is not typed
    if not storage.names(TABLE):
        return ()
    table = dataset.dataset(
        storage.path_of(TABLE), filesystem=storage.filesystem, schema=SCHEMA, format="parquet"
    )
    return table.to_batches(
        columns=["error_code", "classes"], batch_readahead=1, fragment_readahead=1
    )


def _row(image: Source, record: ModelRecord) -> Row:
    return {"path": storable(image.location), "model": record.name, "model_version": record.version}


@dataclass(frozen=True)
class Block:
    """Images that are processed together: row group `index` of the listing with number `listing`.
    With `retry`, only the `images` of them that failed in an earlier run.
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
    """The size of the block that follows the first `listed` images. Small blocks keep all workers
    of a short job busy until its end; large ones limit the table of a long job to some ten thousand
    files.
    """
    return max(1, min(128, listed // 32), listed // 25_000)


def extend_listing(storage: Storage, images: Iterator[Source], *, distinct_stems: bool) -> int:
    """Lists the images that no earlier run has listed, and returns their number. Raises BulkError
    if two images have the same label map file and `distinct_stems` is true.
    """
    new = _unlisted(storage, images, distinct_stems=distinct_stems)
    first = next(new, None)
    if first is None:
        return 0
    images, listed = chain([first], new), 0
    file_name = _listing_file(len(storage.names(LISTINGS)))
    with storage.writer(file_name) as file, parquet.ParquetWriter(file, _LISTED) as writer:
        while block := list(islice(images, block_size(listed))):
            locations = [os.fsencode(image.location) for image in block]
            names = [os.fsencode(image.name) for image in block]
            writer.write_table(pa.table([locations, names], schema=_LISTED))
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
    """A set of texts, as 8-byte hashes. With a million, 1 in 30 million jobs has a collision."""

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
