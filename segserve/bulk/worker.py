"""The workers of a batch job on Ray: blocks of images become label maps and parts of the table."""

import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import numpy as np
import torch

from ..client.request import JSON, as_fields, http_headers
from ..local import load_pipeline
from ..runtime.decode.quarantine import Quarantine
from ..runtime.errors import OutOfMemoryError
from ..runtime.pipeline import Pipeline
from ..runtime.telemetry import RequestStats
from .batch import Job
from .results import LabelFormat, code_and_reason, concerns_one_name, encode_label_map
from .run import StoppedError
from .sources import Source
from .storage import BulkError, Storage, printable
from .table import (
    FAILED,
    Block,
    Row,
    decode_part,
    encode_part,
    failed_row,
    images_of,
    segmented_row,
)

_NO_LIMIT = 2**31
_STORE_BYTES = 256 * 2**20  # of Ray's object store, without the archive


def load_archive(archive: Path, *, device: str) -> Pipeline:
    """Loads what a server of the archive loads, but without a limit to the cost of an image."""
    pipeline = load_pipeline(archive, device=device, max_cost=_NO_LIMIT)
    return replace(pipeline, quarantine=Quarantine.in_temporary_folder())


@dataclass(frozen=True)
class BlockReport:
    """The numbers of a block's images, and of those that failed.

    Attributes:
        began_s: start of the processing, Unix time.
        stopped: why the job must stop; else empty.
    """

    images: int
    failed: int
    began_s: float
    stopped: str = ""


class BlockWorker:
    """Processes blocks, `threads` images at a time. Each thread computes with as many torch threads
    as the calling thread.
    """

    def __init__(self, job: Job, pipeline: Pipeline, *, threads: int = 2) -> None:
        self._job = job
        self._storage = job.storage
        self._pipeline = pipeline
        self._headers = http_headers(JSON, as_fields(**job.options))  # type: ignore[arg-type]
        self._threads = ThreadPoolExecutor(
            threads, initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),)
        )

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Ray Data calls it with the fields of a `Block`. Returns those of a `BlockReport`."""
        block, began_s = Block(**row), time.time()
        try:
            report = BlockReport(block.images, self._finish(block), began_s)
        except StoppedError as error:
            report = BlockReport(block.images, 0, began_s, str(error))
        return asdict(report)

    def _finish(self, block: Block) -> int:
        """Processes a block, unless a previous worker has. Returns the number of failed images.
        Raises `StoppedError` if results cannot be written.
        """
        try:
            part = self._storage.read(block.part)
            rows = [] if part is None else decode_part(part)
            if part is None or block.retry:
                rows = self._rows(images_of(self._storage, block), rows)
                self._storage.write(block.part, encode_part(rows))
        except OSError as error:
            raise _stopped(self._storage, error) from error
        return sum(row["status"] == FAILED for row in rows)

    def _rows(self, images: list[Source], earlier: list[Row]) -> list[Row]:
        """The rows of the images, in order. `earlier` rows are kept unless they have failed."""
        if self._pipeline.quarantine:
            self._pipeline.quarantine.sweep()  # another worker may have crashed at this block
        rows = earlier or [{"status": FAILED}] * len(images)
        failed = [index for index, row in enumerate(rows) if row["status"] == FAILED]
        computed = self._threads.map(self._row, [images[index] for index in failed])
        for index, row in zip(failed, computed, strict=True):
            rows[index] = row
        for index in failed:
            if rows[index].get("error_code") == OutOfMemoryError.code:
                rows[index] = self._row(images[index])  # alone: the others may have used the memory
        return rows

    def _row(self, image: Source) -> Row:
        """Segments an image, and writes its label map. Raises as `_finish`."""
        began_s = time.perf_counter()
        record = self._pipeline.segmenter.record
        try:
            request = {"body": Storage.at(image.location).read_bytes()}
            _, _, segmentation = self._pipeline.segment(request, self._headers, RequestStats())
            row = segmented_row(image, segmentation.label_map, segmentation.classes, record)
            content = b""
            if self._job.format is not LabelFormat.RLE:
                content = encode_label_map(segmentation.label_map, record.palette, self._job.format)
        except Exception as error:  # the image's row reports any error
            return failed_row(image, *code_and_reason(error), record)
        row["milliseconds"] = 1000 * (time.perf_counter() - began_s)
        row["labels"] = self._job.label_file(image)
        try:
            if content:
                self._storage.write(row["labels"], content)
        except OSError as error:
            if not concerns_one_name(error):
                raise _stopped(self._storage, error) from error
            reason = f"the label map cannot be written: {error.strerror}"
            return failed_row(image, "file", reason, record)
        return row


class PoolWorker(BlockWorker):
    """A worker in its own process on Ray, with one torch thread: sums depend on the number of
    threads, and with one each, any number of workers gives the same label maps. `archive` is the
    archive's content, uint8 (N,), in Ray's object store.
    """

    def __init__(self, job: Job, archive: Any, device: str, threads: int) -> None:  # noqa: ANN401
        import ray

        torch.set_num_threads(1)
        with TemporaryDirectory(prefix="segserve-") as folder:
            file = Path(folder, "model.mar")
            ray.get(archive).tofile(file)
            pipeline = load_archive(file, device=device)
        super().__init__(job, pipeline, threads=threads)


def processed_blocks(
    ray: ModuleType, job: Job, blocks: Sequence[Block], workers: int | None
) -> Iterator[BlockReport]:
    """Processes blocks with a pool of workers, by default one per GPU or else per core. Yields
    their reports in order of completion. Raises StoppedError if workers failed repeatedly, or the
    cluster is lost.
    """
    resources = ray.cluster_resources()
    cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    workers = workers or max(1, int(gpus or cpus))
    cpus_each = max(1.0, cpus // workers) if gpus else min(1.0, cpus / workers)
    archive = ray.put(np.fromfile(job.archive, np.uint8))
    rows = [asdict(block) for block in blocks]
    reports = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        PoolWorker,
        fn_constructor_args=(job, archive, "cuda" if gpus else "cpu", max(2, int(cpus_each))),
        compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=2),
        num_cpus=cpus_each,
        num_gpus=min(1.0, gpus / workers),
    )
    try:
        batches = reports.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
        for batch in batches:
            yield from (BlockReport(**report) for report in batch.to_pylist())
    except ray.exceptions.RayError as error:
        reason = " ".join(str(error.__cause__ or error).split())[-300:]
        raise StoppedError(f"the workers failed: {reason}") from error


@contextmanager
def joined_ray(address: str | None, cpus: int | None, archive_bytes: int) -> Iterator[ModuleType]:
    """Connects to Ray and yields its module. Without an address, a private Ray instance is started
    and ends with this context; one that already runs on this machine is not used. Raises BulkError
    if Ray does not start, or is not at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    import ray.data

    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if ray.is_initialized():  # the caller's own session in this process
        yield ray
        return
    folder = TemporaryDirectory(prefix="segserve-", ignore_cleanup_errors=True)
    private: dict[str, Any] = {
        "num_cpus": cpus,
        "include_dashboard": False,
        "object_store_memory": _STORE_BYTES + 2 * archive_bytes,
        "_temp_dir": folder.name,
    }
    try:
        try:
            ray.init(
                address=address or "local",
                log_to_driver=False,
                configure_logging=False,
                logging_level=logging.CRITICAL,
                **({} if address else private),
            )
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            reason = " ".join(str(error).split())[:300]
            raise BulkError(f"{address or 'Ray'}: cannot be joined: {reason}") from error
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        yield ray
    finally:
        ray.shutdown()
        folder.cleanup()


def _stopped(storage: Storage, error: OSError) -> StoppedError:
    reason = error.strerror or " ".join(str(error).split())[:400]
    return StoppedError(f"{printable(storage.location(''))}: cannot be written: {reason}")
