"""Batch jobs on Ray Data: any number of images to label maps and a table. Neither torch nor Ray nor
pyarrow is imported here, so that wrong arguments are reported at once.
"""

import json
import socket
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..resources import require_packages
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
from .results import LabelFormat, claim
from .run import Interrupts, StoppedError
from .sources import Source, iter_sources
from .storage import BulkError, Storage, absolute, errors_with_location, storable

if TYPE_CHECKING:
    from .table import Block, Summary
    from .worker import BlockReport

MANIFEST, SUMMARY = "job.json", "summary.json"
RESERVED = ("table", ".listings", "labels", SUMMARY)

_REACHABLE_WITHIN_S = 10
_PIXEL_OPTIONS = ("mode", "tta", "classes", "threshold", "alpha")  # they change label maps


@dataclass(frozen=True)
class Job:
    """One job. Relative paths become absolute: workers run in folders of their own.

    Attributes:
        source, column: see `iter_sources`.
        target: path or URI of the results.
        options: those of a request; the value of `classes` is the original text.
    """

    source: str
    target: str
    archive: Path
    format: LabelFormat = LabelFormat.PNG
    options: Mapping[str, object] = field(default_factory=dict)
    column: str = "path"

    def __post_init__(self) -> None:
        object.__setattr__(self, "source", absolute(self.source))
        object.__setattr__(self, "target", absolute(self.target))
        object.__setattr__(self, "archive", self.archive.absolute())

    @property
    def storage(self) -> Storage:
        return Storage.at(self.target)

    def label_file(self, image: Source) -> str | None:
        """The path of an image's label map below the target; None if the format has no files."""
        if self.format is LabelFormat.RLE:
            return None
        return f"labels/{storable(image.stem)}.{self.format}"

    def images(self, left_out: Counter[str] | None = None) -> Iterator[Source]:
        """Lists the images. `left_out`: see `iter_sources`. Raises as `iter_sources`, and if an
        image lies in the target.
        """
        target = self.storage
        prefix = target.location("").removesuffix(target.query).rstrip("/") + "/"
        for image in iter_sources(
            self.source, column=self.column, results=target, left_out=left_out
        ):
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
        ModuleNotFoundError: Ray is not installed.
        BulkError: there is no archive, the source has no images, or they lie in the target.
        BadOptionError: the model does not support the options.
    """
    require_packages("ray", "pyarrow")
    record = read_archive(job.archive, job.options)
    next(job.images())  # raises if there are none
    manifest = {
        "archive_sha256": sha256_of(job.archive),
        "model": record.name,
        "model_version": record.version,
        "source": job.source,
        "column": job.column,
        "format": job.format,
        **{name: job.options.get(name) for name in _PIXEL_OPTIONS},
    }
    return manifest, record


def read_archive(archive: Path, options: Mapping[str, object]) -> ModelRecord:
    """Reads an archive's record, and checks its weights' hash and the options of a request, without
    loading the network. Raises as `check_job`.
    """
    if not archive.is_file():
        raise BulkError(f"{archive}: expected an archive (.mar); `segserve archive` makes one")
    from ..local import open_model

    with open_model(archive) as (folder, config_file):
        record = read_record(folder)
        verified_file(named_weights(record), folder, "weights")
        settings = read_config(read_yaml(config_file)).handler
    class_ids(parse_options(options, settings.defaults).classes, record)
    return record


def run_batch(
    job: Job,
    *,
    workers: int | None = None,
    address: str | None = None,
    max_failures: int | None = None,
    retry_failed: bool = False,
    overwrite: bool = False,
    report: Callable[[int, int], None] = lambda *_: None,
) -> "Summary":
    """Processes the images that no earlier run has processed. The same call resumes a job that was
    stopped. Writes the summary of the table and returns it.

    Args:
        workers: by default, one per GPU or core.
        address: of a Ray cluster; by default, this machine computes.
        max_failures: stop if more images than this fail in this run.
        retry_failed: compute images again that failed in an earlier run.
        overwrite: start from the beginning, without the target's previous results.
        report: receives the numbers of images of the job, and of processed images.

    Raises:
        ModelError, BadOptionError: as `check_job`.
        BulkError: the source or the target is invalid, or Ray cannot be started or joined.
        StoppedError: too many images failed, results cannot be written, or workers failed.
        InterruptedRunError: the process received SIGINT or SIGTERM.
    """
    with Interrupts() as interrupts, interrupts.immediate():
        manifest, record = check_job(job)
        if address:
            _check_reachable(address)
        storage = job.storage
        with errors_with_location(job.target):
            claim(storage, manifest, file=MANIFEST, reserved=RESERVED, overwrite=overwrite)
            from .table import blocks_of, extend_listing, summarize, unfinished_blocks

            left_out = Counter[str]()
            distinct_stems = job.format is not LabelFormat.RLE
            extend_listing(storage, job.images(left_out), distinct_stems=distinct_stems)
            total = sum(block.images for block in blocks_of(storage))
            blocks = unfinished_blocks(storage, retry_failed=retry_failed)
        earlier = total - sum(block.images for block in blocks)
        report(total, earlier)
        done, failed, seconds = 0, 0, 0.0
        began_s = float("inf")  # start of the first worker; excludes start-up time
        try:
            with closing(_processed(job, blocks, interrupts, address, workers)) as processed:
                for block in processed:
                    done, failed = done + block.images, failed + block.failed
                    began_s = min(began_s, block.began_s)
                    seconds = max(0.0, time.time() - began_s)
                    report(total, earlier + done)
                    if max_failures is not None and failed > max_failures:
                        raise StoppedError(
                            f"{failed} images have failed, more than the {max_failures} of "
                            "--max-failures"
                        )
        finally:
            storage.sweep()
            summary = replace(
                summarize(storage, record, images=total, done=done, seconds=seconds),
                left_out=dict(left_out),
            )
            storage.write(SUMMARY, json.dumps(asdict(summary), indent=2).encode())
        return summary


def _processed(
    job: Job,
    blocks: "list[Block]",
    interrupts: Interrupts,
    address: str | None,
    workers: int | None,
) -> "Generator[BlockReport]":
    """Processes blocks on Ray. Raises StoppedError as `run_batch`."""
    if not blocks:
        return
    from .worker import joined_ray, processed_blocks  # imports torch

    with joined_ray(address, workers, job.archive.stat().st_size) as ray:
        interrupts.install()  # Ray has set its own handlers
        for block in processed_blocks(ray, job, blocks, workers):
            if block.stopped:
                raise StoppedError(block.stopped)
            yield block


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
