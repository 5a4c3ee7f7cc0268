"""Lists the images of a folder, a glob, a list, a table or a URI of one of these. Does not read the
images.
"""

import os
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass

from pyarrow import ArrowInvalid, dataset, fs
from pyarrow import compute as pc

from ..segment.errors import SegmentError
from ..segment.sources import SUFFIXES, Source, printable, sources_of
from .storage import Place, place_of, read_bytes, told_by_location

_MAGIC = re.compile(r"[*?[]")
_TABLES = {".parquet": "parquet", ".pq": "parquet", ".csv": "csv"}
_ACCEPTED = (
    "expected a folder, a quoted glob, a list (.txt), a table (.parquet, .csv) or a URI of one of "
    "them"
)


@dataclass(frozen=True, slots=True)
class Image:
    """An image to segment.

    Attributes:
        location: the image's path or URI.
        name: the path below the source. The results keep this path below the target.
    """

    location: str
    name: str

    @property
    def stem(self) -> str:
        """The name without an image suffix."""
        return Source("", self.name).stem


def images_of(source: str, *, column: str = "path") -> Iterator[Image]:
    """Lists the images of a source. The order depends only on their names.

    Args:
        source: a folder (searched recursively), a glob, a list (.txt, one path or URI per line), a
            table (.parquet, .csv), or the URI of one of these. Paths in a list or a table are
            relative to its folder.
        column: the table's column of paths or URIs.

    Raises:
        SegmentError: the source is none of these, is not readable, or does not have the column.
    """
    suffix = os.path.splitext(source)[1].lower()
    with told_by_location(source):
        place = place_of(source)
        if suffix in _TABLES:
            yield from _entries_as_images(_column(place, source, column), place)
        elif suffix == ".txt":
            yield from _entries_as_images(_lines(source), place)
        elif place.is_local:
            yield from _local_images(place.path, source)
        elif place.is_folder():
            yield from _in_folder(place, place.path)
        elif _MAGIC.search(place.path):
            yield from _matching(place)
        else:
            raise SegmentError(f"{printable(source)}: {_ACCEPTED}")


def folder_of(source: str) -> Place | None:
    """The folder that a source names; None if the source is not a folder."""
    place = place_of(source)
    with told_by_location(source):
        return place if place.is_folder() else None


def _local_images(path: str, source: str) -> Iterator[Image]:
    if not os.path.isdir(path) and (os.path.lexists(path) or not _MAGIC.search(path)):
        found = (
            "there is no such file or folder" if not os.path.lexists(path) else "is a single file"
        )
        raise SegmentError(f"{printable(source)}: {found}; {_ACCEPTED}")
    for found_image in sources_of(path):
        yield Image(found_image.path, found_image.name)


def _in_folder(place: Place, folder: str) -> Iterator[Image]:
    """Lists one folder at a time, so that only the names of one folder are in memory."""
    below = [folder]
    while below:
        found = sorted(
            place.filesystem.get_file_info(fs.FileSelector(below.pop())),
            key=lambda info: str(info.base_name),
        )
        shown = [info for info in found if not info.base_name.startswith(".")]
        for info in shown:
            if info.type == fs.FileType.File and info.base_name.lower().endswith(SUFFIXES):
                yield Image(place.location_of(info.path), posixpath.relpath(info.path, place.path))
        below += [info.path for info in reversed(shown) if info.type == fs.FileType.Directory]


def _matching(place: Place) -> Iterator[Image]:
    """Lists the images that match a glob, including `**`."""
    from fsspec.utils import glob_translate

    fits = re.compile(glob_translate(place.path))
    fixed = place.path[: _MAGIC.search(place.path).start()].rpartition("/")[0]  # type: ignore[union-attr]
    base = Place(place.filesystem, fixed, place.prefix, place.query)
    for image in _in_folder(base, fixed):
        if fits.fullmatch(posixpath.join(fixed, image.name)):
            yield image


def _lines(source: str) -> Iterator[str]:
    text = read_bytes(source).decode("utf-8-sig", errors="surrogateescape")
    yield from (line.strip() for line in text.splitlines() if line.strip())


def _column(place: Place, source: str, column: str) -> Iterator[str]:
    kind = _TABLES[os.path.splitext(source)[1].lower()]
    try:
        table = dataset.dataset(place.path, filesystem=place.filesystem, format=kind)
    except ArrowInvalid as error:
        raise SegmentError(
            f"{printable(source)}: not a {kind} file: {' '.join(str(error).split())[:200]}"
        ) from error
    if column not in table.schema.names:
        there = ", ".join(table.schema.names[:20])
        raise SegmentError(
            f"{printable(source)}: there is no column {column!r}, but {there}; name it with "
            "--column"
        )
    for batch in table.to_batches(columns=[column]):
        if batch.column(0).null_count:
            raise SegmentError(
                f"{printable(source)}: column {column!r} has rows without a path; leave them out"
            )
        yield from pc.cast(batch.column(0), "string").to_pylist()


def _entries_as_images(entries: Iterator[str], place: Place) -> Iterator[Image]:
    folder = posixpath.dirname(place.path)
    for entry in entries:
        is_relative = "://" not in entry and not entry.startswith("/")
        location = (
            place.location_of(posixpath.normpath(posixpath.join(folder, entry)))
            if is_relative
            else entry
        )
        name = posixpath.normpath(entry) if is_relative else ""
        yield Image(location, name if name and not name.startswith("..") else _name_of(location))


def _name_of(location: str) -> str:
    """The whole path as a relative path that cannot leave its folder."""
    return posixpath.normpath(
        "/" + location.partition("://")[2] if "://" in location else location
    ).lstrip("/")
