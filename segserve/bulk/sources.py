"""Lists the images of files, folders, globs, lists, tables and stores. Does not read the images."""

import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from .storage import BulkError, Storage, errors_with_location, printable

_JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo")
_OTHER_SUFFIXES = (".png", ".webp", ".avif", ".heic", ".heif", ".bmp", ".tif", ".tiff", ".gif")
SUFFIXES = (*_JPEG_SUFFIXES, *_OTHER_SUFFIXES)
"""The suffixes of the images in a folder, in upper or lower case."""

_MAGIC = re.compile(r"[*?[]")
_TABLES = {".parquet": "parquet", ".pq": "parquet", ".csv": "csv"}


@dataclass(frozen=True, slots=True)
class Source:
    """One image.

    Attributes:
        location: its path or URI.
        name: its path below the listed folder. The results keep this path.
    """

    location: str
    name: str

    @property
    def stem(self) -> str:
        """The name without an image suffix. Others stay: `frame.0001` and `frame.0002` differ."""
        stem, suffix = os.path.splitext(self.name)
        return stem if suffix.lower() in SUFFIXES else self.name

    def __str__(self) -> str:
        return printable(self.location)


def find_sources(
    arguments: Iterable[str],
    *,
    results: Storage | None = None,
    left_out: Counter[str] | None = None,
) -> list[Source]:
    """The images of several arguments in order, without duplicates; see `iter_sources`."""
    found: dict[Source, None] = {}
    for argument in arguments:
        found |= dict.fromkeys(iter_sources(argument, results=results, left_out=left_out))
    return list(found)


def iter_sources(
    argument: str,
    *,
    column: str = "path",
    results: Storage | None = None,
    left_out: Counter[str] | None = None,
) -> Iterator[Source]:
    """Lists the images of an argument, lazily. The order depends only on their names.

    A folder is searched recursively, without hidden names, links to folders and files that are not
    images. Files and the local matches of a glob may have any suffix.

    Args:
        argument: a file, a folder, a glob, a list (.txt, one path or URI per line), a table
            (.parquet, .csv), or the URI of one of these. Paths in a list or a table are relative to
            its folder.
        column: the table's column of paths or URIs.
        results: the folder of results, skipped in a searched folder or glob.
        left_out: receives, by suffix, the number of files in a folder that are not images.

    Raises:
        BulkError: the argument has no images, is not readable, or does not have the column.
    """
    suffix, is_empty = os.path.splitext(argument)[1].lower(), True
    with errors_with_location(argument):
        storage = Storage.at(argument)
        if suffix in _TABLES:
            images = _listed(_column(storage, argument, column), storage)
        elif suffix == ".txt":
            text = storage.read_bytes().decode("utf-8-sig", errors="surrogateescape")
            images = _listed(filter(None, map(str.strip, text.splitlines())), storage)
        elif storage.is_folder():
            images = _images_in(storage, results, left_out)
        elif storage.exists():
            images = iter([Source(storage.location(""), posixpath.basename(storage.path))])
        elif _MAGIC.search(storage.path):
            images = _matches(storage, results)
        else:
            raise BulkError(f"{printable(argument)}: there is no such file or folder")
        for image in images:
            is_empty = False
            yield image
    if is_empty:
        raise BulkError(f"{printable(argument)}: holds no images ({', '.join(SUFFIXES)})")


def _images_in(
    folder: Storage, results: Storage | None = None, left_out: Counter[str] | None = None
) -> Iterator[Source]:
    """All images below a folder. Only the names of one folder are in memory."""
    left, skipped = [""], folder.name_of(results) if results else None
    while left:
        parent, folders = left.pop(), []
        for entry, is_folder in folder.entries(parent):
            name = posixpath.join(parent, entry)
            if entry.startswith("."):
                continue
            if is_folder:
                folders += [] if name == skipped else [name]
            elif entry.lower().endswith(SUFFIXES):
                yield Source(folder.location(name), name)
            elif left_out is not None:
                left_out[os.path.splitext(entry)[1].lower() or "without a suffix"] += 1
        left += reversed(folders)


def _outside(
    results: Storage | None, folder: Storage, images: Iterator[Source]
) -> Iterator[Source]:
    """The images of a folder that do not lie in the folder of results."""
    skipped = f"{folder.name_of(results)}/" if results else "./"
    return (image for image in images if not image.name.startswith(skipped))


def _matches(pattern: Storage, results: Storage | None) -> Iterator[Source]:
    """Matches as a shell's glob, with `**`; in a store, only images."""
    parts = Path(pattern.path).parts
    first = next(index for index, part in enumerate(parts) if _MAGIC.search(part))
    folder = replace(pattern, path=str(Path(*parts[:first])))
    found = _local_matches if pattern.is_local else _stored_matches
    return _outside(results, folder, found(folder, os.path.join(*parts[first:])))


def _local_matches(folder: Storage, pattern: str) -> Iterator[Source]:
    """Hidden names match only if the pattern names them."""
    shows_hidden = any(part.startswith(".") for part in Path(pattern).parts)
    for path in sorted(Path(folder.path).glob(pattern)):
        name = path.relative_to(folder.path)
        is_hidden = any(part.startswith(".") for part in name.parts) and not shows_hidden
        if not (is_hidden or path.is_dir()):
            yield Source(str(path), str(name))


def _stored_matches(folder: Storage, pattern: str) -> Iterator[Source]:
    from fsspec.utils import glob_translate

    matcher = re.compile(glob_translate(pattern))
    return (image for image in _images_in(folder) if matcher.fullmatch(image.name))


def _column(storage: Storage, source: str, column: str) -> Iterator[str]:
    from pyarrow import compute as pc
    from pyarrow import dataset

    kind = _TABLES[os.path.splitext(source)[1].lower()]
    table = dataset.dataset(storage.path, filesystem=storage.filesystem, format=kind)
    names = table.schema.names
    if column not in names:
        raise BulkError(
            f"{printable(source)}: there is no column {column!r}, but {', '.join(names[:20])}; "
            "name it with --column"
        )
    for batch in table.to_batches(columns=[column]):
        if batch.column(0).null_count:
            raise BulkError(f"{printable(source)}: column {column!r} has rows without a path")
        yield from pc.cast(batch.column(0), "string").to_pylist()


def _listed(entries: Iterable[str], storage: Storage) -> Iterator[Source]:
    folder = posixpath.dirname(storage.path)
    for entry in entries:
        is_relative = "://" not in entry and not entry.startswith("/")
        path = posixpath.normpath(posixpath.join(folder, entry))
        location = replace(storage, path=path).location("") if is_relative else entry
        name = posixpath.normpath(entry)
        keeps_name = is_relative and not name.startswith("..")
        yield Source(location, name if keeps_name else _name_of(location))


def _name_of(location: str) -> str:
    """The whole path as a relative path that cannot leave its folder."""
    return posixpath.normpath(f"/{location.partition('://')[2] or location}").lstrip("/")
