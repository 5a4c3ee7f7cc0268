"""The code of every worker: it converts a block of images to label maps and one part of the
table.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from ..runtime.decode.image import Decoded
from ..runtime.encode.mask import encode_npy, encode_png
from ..runtime.errors import SegserveError
from ..runtime.inference.labels import Segmentation
from ..segment.errors import SegmentError, StoppedError
from ..segment.folder import concerns_one_name
from ..segment.sources import printable
from .formats import Format
from .job import Job
from .listing import Block, Listings
from .model import BatchModel
from .sources import Image
from .storage import Storage, read_bytes
from .table import Row, count_failed, encode_part, failed_columns, row_of, segmented_columns

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Work:
    """The arguments of all workers of a job.

    Attributes:
        archive: the archive's content, uint8 (N,), in Ray's object store, because other machines do
            not have the file.
        threads: number of threads for reading, decoding and writing. The network uses one more
            thread or the GPU.
    """

    job: Job
    archive: "ray.ObjectRef[NDArray[np.uint8]]"
    device: str
    threads: int


class BlockWorker:
    """Processes blocks. Ray Data calls it with the columns `listing`, `index` and `images`: one row
    per block.

    Args:
        threads: number of threads for reading, decoding and writing, in addition to the network's.
    """

    def __init__(self, job: Job, model: BatchModel, *, threads: int = 2) -> None:
        self._job = job
        self._storage = job.storage
        self._listings = Listings(self._storage)
        self._model = model
        self._ahead = threads
        self._threads = ThreadPoolExecutor(threads)

    def __call__(self, batch: Mapping[str, NDArray[Any]]) -> dict[str, list[Any]]:
        """Returns columns: `images`, `failed`, `began_s` (Unix time), `stopped` (why the job must
        stop, else empty).
        """
        done: dict[str, list[Any]] = {"images": [], "failed": [], "began_s": [], "stopped": []}
        for listing, index, images in zip(
            batch["listing"], batch["index"], batch["images"], strict=True
        ):
            block = Block(int(listing), int(index), int(images))
            done["began_s"].append(time.time())
            try:
                failed, stopped = self._finish(block), ""
            except StoppedError as error:
                failed, stopped = 0, str(error)
            done["images"].append(block.images)
            done["failed"].append(failed)
            done["stopped"].append(stopped)
        return done

    def _finish(self, block: Block) -> int:
        """Processes a block, unless a previous worker has finished it. Returns the number of failed
        images.

        Raises:
            StoppedError: results cannot be written.
        """
        try:
            part = self._storage.read(block.part)
            if part is None:
                part = encode_part(self._rows(block))
                self._storage.write(block.part, part)
        except OSError as error:
            raise _stopped(self._storage, error) from error
        return count_failed(part)

    def _rows(self, block: Block) -> list[Row]:
        self._model.hear_of_crashes()  # another worker may have crashed at this block
        images = self._listings.images(block)
        rows, writes = [], deque[tuple[Row, Future[None]]]()
        for image, decoded in _ahead(self._threads, self._decoded, images, self._ahead):
            row, label_map = self._row(image, decoded)
            rows.append(row)
            if label_map is not None:
                writes.append(
                    (row, self._threads.submit(self._storage.write, row["labels"], label_map))
                )
            while len(writes) > self._ahead:
                _await(*writes.popleft())
        for row, write in writes:
            _await(row, write)
        return rows

    def _decoded(self, image: Image) -> "tuple[Decoded, float]":
        """The image's pixels, and the duration of reading and decoding in seconds."""
        began_s = time.perf_counter()
        return self._model.decode(read_bytes(image.location)), time.perf_counter() - began_s

    def _row(
        self, image: Image, decoded: "Callable[[], tuple[Decoded, float]]"
    ) -> tuple[Row, bytes | None]:
        """A row of the table, and the content of the label map file; None if there is no such
        file.
        """
        row = row_of(self._model.record, printable(image.location))
        try:
            pixels, decoding_s = decoded()
            began_s = time.perf_counter()
            segmentation = self._model.segment(pixels)
            row |= segmented_columns(segmentation, self._model.record)
            content = self._encoded(segmentation)
        except Exception as error:  # the image's row reports any error
            return row | failed_columns(*_code_and_reason(error)), None
        row["milliseconds"] = 1000 * (decoding_s + time.perf_counter() - began_s)
        row["labels"] = self._job.label_file(image.stem)
        return row, content

    def _encoded(self, segmentation: Segmentation) -> bytes | None:
        if self._job.format is Format.PNG:
            return encode_png(segmentation.label_map, self._model.record.palette)
        return encode_npy(segmentation.label_map) if self._job.format is Format.NPY else None


class PoolWorker(BlockWorker):
    """One of the pool's workers, in its own process.

    It computes with one thread. One worker per core is fastest for many images. Sums in torch
    depend on the number of threads; with one thread each, any number of workers gives the same
    label maps.
    """

    def __init__(self, work: Work) -> None:
        torch.set_num_threads(1)
        super().__init__(work.job, _load(ray.get(work.archive), work), threads=work.threads)


def _load(content: "NDArray[np.uint8]", work: Work) -> BatchModel:
    with TemporaryDirectory(prefix="segserve-") as folder:
        archive = Path(folder, "model.mar")
        content.tofile(archive)
        return BatchModel(archive, work.job.options, device=torch.device(work.device))


def _ahead(
    threads: ThreadPoolExecutor, work: Callable[[Item], Result], items: Iterable[Item], window: int
) -> Iterator[tuple[Item, Callable[[], Result]]]:
    """Yields every item in order with a function that returns its result. Computes the next
    `window` items ahead.
    """
    begun: deque[tuple[Item, Callable[[], Result]]] = deque()
    for item in items:
        begun.append((item, threads.submit(work, item).result))
        if len(begun) > window:
            yield begun.popleft()
    yield from begun


def _await(row: Row, write: Future[None]) -> None:
    """Waits until a label map is written. An error that concerns only its name marks its row as
    failed.

    Raises:
        OSError: the error would affect other files too.
    """
    try:
        write.result()
    except OSError as error:
        if not concerns_one_name(error):
            raise
        for column in ("labels", "classes", "rle"):
            row[column] = None
        row |= failed_columns("file", f"the label map cannot be written: {error.strerror}")


def _code_and_reason(error: Exception) -> tuple[str, str]:
    if isinstance(error, SegserveError | SegmentError):
        return error.code, str(error)
    if isinstance(error, OSError):
        reason = os.strerror(error.errno) if error.errno else " ".join(str(error).split())[:400]
        return "file", f"cannot be read: {reason}"
    return "internal_error", f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"


def _stopped(storage: Storage, error: OSError) -> StoppedError:
    reason = error.strerror or " ".join(str(error).split())[:400]
    return StoppedError(f"{printable(storage.location(''))}: cannot be written: {reason}")
