"""The table of a batch job: one row per image, one Parquet file per block, and the summary."""

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import compute as pc
from pyarrow import dataset, parquet

from ..runtime.encode.mask import LabelMap, encode_rle
from ..runtime.record import ModelRecord
from ..schema.response import ClassArea
from .sources import Source
from .storage import Storage

TABLE = "table"
SEGMENTED, FAILED = "segmented", "failed"

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
    """Encodes rows as a Parquet file."""
    buffer = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(list(rows), schema=SCHEMA), buffer, compression="zstd")
    return buffer.getvalue()


def decode_part(part: bytes) -> list[Row]:
    rows: list[Row] = parquet.read_table(io.BytesIO(part)).to_pylist()
    return rows


def count_failed(storage: Storage, part: str) -> int:
    """The number of failed images in a file of the table."""
    status = parquet.read_table(
        storage.path_of(part), filesystem=storage.filesystem, columns=["status"]
    ).column("status")
    return int(pc.sum(pc.equal(status, FAILED)).as_py() or 0)


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
        seconds, images_per_second: of this run, from the start of its first worker.
    """

    images: int
    segmented: int
    failed: int
    left: int
    failures: dict[str, int] = field(default_factory=dict)
    classes: tuple[ClassTotal, ...] = ()
    seconds: float = 0.0
    images_per_second: float = 0.0


def summarize(
    storage: Storage, record: ModelRecord, *, images: int, done: int, seconds: float
) -> Summary:
    """Summarises a job of so many `images`, of which this run has processed `done` in `seconds`."""
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
    return {"path": str(image), "model": record.name, "model_version": record.version}
