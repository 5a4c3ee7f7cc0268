"""The content of a target: the manifest with model and options, the label maps, the table and the
listings.
"""

import json
import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ..segment.errors import SegmentError
from ..segment.sources import printable
from .formats import Format
from .sources import Image, folder_of
from .storage import Place, Storage, place_of, told_by_location

LABELS, TABLE, LISTINGS = "labels", "table", ".listings"
MANIFEST, SUMMARY = "job.json", "summary.json"


@dataclass(frozen=True)
class Job:
    """One job. `options` are those of a request; the value of `classes` is the original text."""

    target: str
    format: Format
    options: Mapping[str, object]

    @property
    def storage(self) -> Storage:
        return Storage.at(self.target)

    def label_file(self, stem: str) -> str | None:
        """The path of an image's label map, relative to the target; None if the format has no
        files.
        """
        return None if self.format is Format.RLE else f"{LABELS}/{stem}.{self.format}"


def check_apart(source: str, target: str) -> None:
    """Checks that source and target do not overlap.

    Raises:
        SegmentError: source and target are the same folder, or one contains the other.
    """
    folder, results = folder_of(source), place_of(target)
    if folder is not None and (_is_within(folder, results) or _is_within(results, folder)):
        raise SegmentError(
            f"{printable(target)} and {printable(source)} overlap: label maps would be taken for "
            "images the next time, "
            "or images be overwritten; name a target that lies elsewhere"
        )


def apart(images: Iterator[Image], target: str) -> Iterator[Image]:
    """Yields the images and checks that each lies outside the target.

    Raises:
        SegmentError: an image lies within the target.
    """
    within = place_of(target)
    prefix = within.location_of(within.path.rstrip("/") + "/").removesuffix(within.query)
    for image in images:
        if image.location.startswith(prefix):
            raise SegmentError(
                f"{printable(image.location)} lies within the target; name another target, or "
                "other images"
            )
        yield image


def claim_target(job: Job, manifest: Mapping[str, object], *, overwrite: bool) -> None:
    """Writes the manifest to the target, so that all of its results have the same model and
    options.

    Args:
        overwrite: remove a previous job's results first. Other files are kept.

    Raises:
        SegmentError: the target contains results of another job or files that no job created, or it
            is not writable.
    """
    storage = job.storage
    with told_by_location(job.target):
        noted = _noted(storage, job.target)
        if noted is None:
            _check_unclaimed(storage, job.target)
        elif overwrite:
            _clear(storage)
        else:
            _check_same(noted, manifest, job.target)
        storage.write(MANIFEST, json.dumps(manifest, indent=2).encode())
        storage.sweep()


def _noted(storage: Storage, target: str) -> dict[str, object] | None:
    content = storage.read(MANIFEST)
    if content is None:
        return None
    try:
        noted = json.loads(content)
    except ValueError:
        noted = None
    if not isinstance(noted, dict):
        raise SegmentError(f"{printable(target)}: its {MANIFEST} is damaged; name another target")
    return noted


def _check_unclaimed(storage: Storage, target: str) -> None:
    for name in (LABELS, TABLE):
        if storage.exists(name):
            raise SegmentError(
                f"{printable(target)}: holds {name}/ of something else; name another target"
            )


def _check_same(noted: Mapping[str, object], manifest: Mapping[str, object], target: str) -> None:
    differing = sorted(
        key for key in noted.keys() | manifest.keys() if noted.get(key) != manifest.get(key)
    )
    if differing:
        told = "; ".join(
            f"{key}: {noted.get(key, 'none')} then, {manifest.get(key, 'none')} now"
            for key in differing
        )
        raise SegmentError(
            f"{printable(target)} holds results of another job ({printable(told)}); name another "
            "target, or --overwrite"
        )


def _clear(storage: Storage) -> None:
    """Deletes a job's results. The manifest is deleted last, so that an interrupted deletion can be
    repeated.
    """
    for folder in (TABLE, LISTINGS, LABELS):
        storage.delete_folder(folder)
    for file in (SUMMARY, MANIFEST):
        storage.delete(file)


def _is_within(inner: Place, outer: Place) -> bool:
    if inner.filesystem != outer.filesystem:
        return False
    return posixpath.commonpath([inner.path, outer.path]) == outer.path
