"""Batch jobs on Ray Data: any number of images to label maps and a table. Neither torch nor Ray nor
pyarrow is imported here, so that wrong arguments are reported at once.
"""

import json
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ..runtime.record import (
    ModelRecord,
    named_weights,
    read_record,
    read_yaml,
    sha256_of,
    verified_file,
)
from ..runtime.request import class_ids, parse_options
from ..runtime.settings import read_config
from .errors import BulkError, Interrupts, StoppedError, printable
from .sources import Source, stored_sources
from .storage import Storage, errors_with_location
from .target import claim

if TYPE_CHECKING:
    from .table import Block, Summary
    from .worker import BlockReport

MANIFEST, SUMMARY = "job.json", "summary.json"
RESERVED = ("table", ".listings", "labels", SUMMARY)

_REACHABLE_WITHIN_S = 10
_PIXEL_OPTIONS = ("mode", "tta", "classes", "threshold", "alpha")  # they change label maps


class LabelFormat(StrEnum):
    """`png`: class ids as an indexed PNG. `npy`: a NumPy file. `rle`: none, the table has RLE."""

    PNG = "png"
    NPY = "npy"
    RLE = "rle"


@dataclass(frozen=True)
class Job:
    """One job.

    Attributes:
        source, column: see `stored_sources`.
        target: path or URI of the results.
        options: those of a request; the value of `classes` is the original text.
    """

    source: str
    target: str
    archive: Path
    format: LabelFormat = LabelFormat.PNG
    options: Mapping[str, object] = field(default_factory=dict)
    column: str = "path"

    @property
    def storage(self) -> Storage:
        return Storage.at(self.target)

    def label_file(self, image: Source) -> str | None:
        """The path of an image's label map below the target; None if the format has no files."""
        return None if self.format is LabelFormat.RLE else f"labels/{image.stem}.{self.format}"

    def images(self) -> Iterator[Source]:
        """Lists the images. Raises as `stored_sources`, and if an image lies in the target."""
        target = self.storage
        prefix = target.location("").removesuffix(target.query).rstrip("/") + "/"
        for image in stored_sources(self.source, column=self.column):
            if image.location.startswith(prefix):
                raise BulkError(
                    f"{image} lies within the target; name another target, or other images"
                )
            yield image


def check_job(job: Job) -> tuple[dict[str, object], ModelRecord]:
    """Checks everything that needs neither torch nor Ray. Returns the job's manifest, which is all
    that its results depend on, and the model's record.

    Raises:
        ModelError: the file is not an archive, or its weights do not match their record.
        BulkError: Ray is not installed, the archive is a folder, the source has no images, or
            source and target overlap.
        BadOptionError: the model does not support the options.
    """
    if missing := [name for name in ("ray", "pyarrow") if find_spec(name) is None]:
        raise BulkError(
            f"batch jobs need {' and '.join(missing)}, not installed: pip install 'segserve[ray]'"
        )
    record = read_archive(job.archive, job.options)
    with errors_with_location(job.source):
        source, target = Storage.at(job.source), job.storage
        overlap = source.is_folder() and (source.contains(target) or target.contains(source))
    if overlap:
        raise BulkError(
            f"{printable(job.target)} and {printable(job.source)} overlap: the next run would take "
            "label maps for images, or overwrite images; name a target that lies elsewhere"
        )
    if next(job.images(), None) is None:
        raise BulkError(f"{printable(job.source)}: holds no images; nothing to segment")
    manifest = {
        "archive_sha256": sha256_of(job.archive),
        "model": record.name,
        "model_version": record.version,
        "source": job.source if "://" in job.source else str(Path(job.source).absolute()),
        "column": job.column,
        "format": job.format,
        **{name: job.options.get(name) for name in _PIXEL_OPTIONS},
    }
    return manifest, record


def read_archive(archive: Path, options: Mapping[str, object]) -> ModelRecord:
    """Reads an archive's record, and checks its weights' hash and the options of a request, without
    loading the network. Raises as `check_job`.
    """
    if archive.is_dir():
        raise BulkError(
            f"{archive}: expected an archive (.mar), got a folder: `segserve archive` packs it"
        )
    from ..local import opened_model

    with opened_model(archive) as (folder, config_file):
        record = read_record(folder)
        verified_file(named_weights(record), folder, "weights")
        settings = read_config(read_yaml(config_file)).handler
    class_ids(parse_options(options, settings.defaults).classes, record)
    return record


@dataclass
class BatchRun:
    """One run of a job. It processes the images that no earlier run has processed.

    Args:
        workers: by default, one per GPU or core.
        address: of a Ray cluster; by default, this machine computes.
        max_failures: stop if more images than this fail in this run.
        retry_failed: compute images again that failed in an earlier run.
        report: receives the numbers of images of the job, of processed images, and of images that
            failed in this run.

    Attributes:
        summary: the summary of the table at the end, even if the run ended early.
    """

    job: Job
    workers: int | None = None
    address: str | None = None
    max_failures: int | None = None
    retry_failed: bool = False
    report: Callable[[int, int, int], None] = lambda *_: None
    summary: "Summary | None" = field(default=None, init=False)
    _done: int = field(default=0, init=False)
    _failed: int = field(default=0, init=False)
    _seconds: float = field(default=0.0, init=False)

    def finish(self, *, overwrite: bool = False) -> None:
        """Processes all images. The same call resumes the job; with `overwrite`, it starts from the
        beginning, without the target's previous results.

        Raises:
            ModelError, BadOptionError: as `check_job`.
            BulkError: the source or the target is invalid, or Ray cannot be started or joined.
            StoppedError: too many images failed, results cannot be written, or workers failed.
            InterruptedRunError: the process received SIGINT or SIGTERM.
        """
        with Interrupts() as interrupts, interrupts.immediate():
            manifest, record = check_job(self.job)
            if self.address:
                _check_reachable(self.address)
            storage = self.job.storage
            with errors_with_location(self.job.target):
                claim(
                    storage,
                    manifest,
                    file=MANIFEST,
                    reserved=RESERVED,
                    remedy="name another target, or --overwrite",
                    overwrite=overwrite,
                )
                from .table import blocks_of, extend_listing, unfinished_blocks

                distinct_stems = self.job.format is not LabelFormat.RLE
                extend_listing(storage, self.job.images(), distinct_stems=distinct_stems)
                total = sum(block.images for block in blocks_of(storage))
                blocks = unfinished_blocks(storage, retry_failed=self.retry_failed)
            try:
                if blocks:
                    self._process(blocks, total, interrupts)
            except BaseException:
                with suppress(OSError):  # the first error is more important
                    self._summarize(total, record)
                raise
            finally:
                with suppress(OSError):
                    storage.sweep()
            self._summarize(total, record)

    def _summarize(self, total: int, record: ModelRecord) -> None:
        from .table import summarize

        storage = self.job.storage
        self.summary = summarize(
            storage, record, images=total, done=self._done, seconds=self._seconds
        )
        storage.write(SUMMARY, json.dumps(asdict(self.summary), indent=2).encode())

    def _process(self, blocks: "list[Block]", total: int, interrupts: Interrupts) -> None:
        from .worker import joined_ray, processed_blocks

        earlier = total - sum(block.images for block in blocks)
        began_s = float("inf")  # start of the first worker; excludes start-up time
        self.report(total, earlier, 0)
        with joined_ray(self.address, self.workers, self.job.archive.stat().st_size) as ray:
            interrupts.install()  # Ray has set its own handlers
            for done in processed_blocks(ray, self.job, blocks, self.workers):
                began_s = min(began_s, done.began_s)
                self._seconds = max(0.0, time.time() - began_s)
                self._take(done)
                self.report(total, earlier + self._done, self._failed)

    def _take(self, done: "BlockReport") -> None:
        if done.stopped:
            raise StoppedError(done.stopped)
        self._done += done.images
        self._failed += done.failed
        if self.max_failures is not None and self._failed > self.max_failures:
            raise StoppedError(
                f"{self._failed} images have failed, more than the {self.max_failures} of "
                "--max-failures"
            )


def _check_reachable(address: str) -> None:
    """Ray itself would wait for minutes if there is no server."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():  # for example `auto`, which Ray resolves
        return
    try:
        socket.create_connection((host, int(port)), timeout=_REACHABLE_WITHIN_S).close()
    except (OSError, OverflowError) as error:
        raise BulkError(
            f"{address}: cannot be joined: {error}; is a Ray head node running there?"
        ) from error
