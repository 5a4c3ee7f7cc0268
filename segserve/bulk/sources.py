"""Lists the images of files, folders, globs, lists, tables and stores. Does not read the images."""

import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from .errors import BulkError, printable
from .storage import Storage, errors_with_location

STDIN = "-"
_JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo")
SUFFIXES = (*_JPEG_SUFFIXES, ".png", ".webp", ".avif", ".bmp", ".tif", ".tiff", ".gif")
"""The suffixes of the images in a folder, in upper or lower case."""

_MAGIC = re.compile(r"[*?[]")
_TABLES = {".parquet": "parquet", ".pq": "parquet", ".csv": "csv"}
_EXPECTED = (
    "expected a folder, a quoted glob, a list (.txt), a table (.parquet, .csv) or a URI of one of "
    "them"
)


@dataclass(frozen=True, slots=True)
class Source:
    """One image.

    Attributes:
        location: its path or URI; `-` for standard input.
        name: its path below the listed folder. The results keep this path.
    """

    location: str
    name: str

    @property
    def is_stdin(self) -> bool:
        return self == STDIN_SOURCE

    @property
    def stem(self) -> str:
        """The name without an image suffix. Others stay: `frame.0001` and `frame.0002` differ."""
        stem, suffix = os.path.splitext(self.name)
        return stem if suffix.lower() in SUFFIXES else self.name

    def __str__(self) -> str:
        return printable(self.location)


STDIN_SOURCE = Source(STDIN, "stdin")


def find_sources(
    arguments: Sequence[str], *, results: Path | None = None, left_out: Counter[str] | None = None
) -> list[Source]:
    """Lists the images of local arguments in order, without duplicates. Raises BulkError if an
    argument matches nothing, or is a folder without images.

    A folder is searched recursively, without hidden names, links to folders and files that are not
    images. Its images and those of a glob are sorted. Files and the matches of a glob may have any
    suffix.

    Args:
        results: the folder of results, skipped in a searched folder or glob.
        left_out: receives, by suffix, the number of files in folders that are not images.
    """
    sources: dict[Source, None] = {}
    for argument in arguments:
        found = dict.fromkeys(_local_sources(argument, results, left_out))
        if not found:
            raise BulkError(f"{printable(argument)}: {_why_empty(argument)}")
        sources |= found
    return list(sources)


def stored_sources(source: str, *, column: str = "path") -> Iterator[Source]:
    """Lists the images of a source on this machine or in a store, lazily. The order depends only on
    their names.

    Args:
        source: a folder (searched recursively), a glob, a list (.txt, one path or URI per line), a
            table (.parquet, .csv), or the URI of one of these. Paths in a list or a table are
            relative to its folder.
        column: the table's column of paths or URIs.

    Raises:
        BulkError: the source is none of these, is not readable, or does not have the column.
    """
    suffix = os.path.splitext(source)[1].lower()
    with errors_with_location(source):
        storage = Storage.at(source)
        if suffix in _TABLES:
            yield from _listed(_column(storage, source, column), storage)
        elif suffix == ".txt":
            text = storage.read_bytes().decode("utf-8-sig", errors="surrogateescape")
            yield from _listed(filter(None, map(str.strip, text.splitlines())), storage)
        elif storage.is_folder():
            yield from _images_in(storage)
        elif storage.exists():
            raise BulkError(f"{printable(source)}: is a single file; {_EXPECTED}")
        elif not _MAGIC.search(storage.path):
            raise BulkError(f"{printable(source)}: there is no such file or folder; {_EXPECTED}")
        elif storage.is_local:
            yield from _local_matches(storage.path, None)
        else:
            yield from _stored_matches(storage)


def _local_sources(
    argument: str, results: Path | None, left_out: Counter[str] | None
) -> Iterable[Source]:
    if argument == STDIN:
        return [STDIN_SOURCE]
    if os.path.isdir(argument):
        return _images_in(Storage(argument.rstrip("/") or "/"), results, left_out)
    if os.path.lexists(argument):
        return [Source(argument, os.path.basename(argument))]
    return _local_matches(argument, results) if _MAGIC.search(argument) else []


def _why_empty(argument: str) -> str:
    if os.path.isdir(argument):
        return f"the folder holds no images ({', '.join(SUFFIXES)})"
    return "no file matches" if _MAGIC.search(argument) else "there is no such file or folder"


def _images_in(
    folder: Storage, results: Path | None = None, left_out: Counter[str] | None = None
) -> Iterator[Source]:
    """All images below a folder; see `find_sources`. Only the names of one folder are in memory."""
    left = [""]
    while left:
        parent, folders = left.pop(), []
        for entry, is_folder in folder.entries(parent):
            name = posixpath.join(parent, entry)
            if entry.startswith("."):
                continue
            if is_folder:
                folders += [] if is_same_folder(folder.path_of(name), results) else [name]
            elif entry.lower().endswith(SUFFIXES):
                yield Source(folder.location(name), name)
            elif left_out is not None:
                left_out[os.path.splitext(entry)[1].lower() or "without a suffix"] += 1
        left += reversed(folders)


def is_same_folder(path: str, folder: Path | None) -> bool:
    """Whether both are the same folder of this machine."""
    if folder is None or not (folder.is_dir() and os.path.isdir(path)):
        return False
    return os.path.samefile(path, folder)


def _local_matches(pattern: str, results: Path | None) -> Iterator[Source]:
    """Matches as a shell's glob, with `**`. Hidden names match only if the pattern names them."""
    parts = Path(pattern).parts
    first = next(index for index, part in enumerate(parts) if _MAGIC.search(part))
    root, rest = Path(*parts[:first]), os.path.join(*parts[first:])
    shows_hidden = any(part.startswith(".") for part in parts[first:])
    excluded = results.resolve() if results else None
    if excluded and root.resolve() not in excluded.parents:
        excluded = None
    for path in sorted(root.glob(rest)):
        name = path.relative_to(root)
        is_hidden = any(part.startswith(".") for part in name.parts) and not shows_hidden
        is_result = excluded and excluded in path.absolute().resolve().parents
        if not (is_hidden or path.is_dir() or is_result):
            yield Source(str(path), str(name))


def _stored_matches(storage: Storage) -> Iterator[Source]:
    """The images in a store that match a glob, including `**`."""
    from fsspec.utils import glob_translate

    pattern = re.compile(glob_translate(storage.path))
    fixed = _MAGIC.split(storage.path, maxsplit=1)[0].rpartition("/")[0]
    for image in _images_in(replace(storage, path=fixed)):
        if pattern.fullmatch(f"{fixed}/{image.name}"):
            yield image


def _column(storage: Storage, source: str, column: str) -> Iterator[str]:
    from pyarrow import ArrowInvalid, dataset
    from pyarrow import compute as pc

    kind = _TABLES[os.path.splitext(source)[1].lower()]
    try:
        table = dataset.dataset(storage.path, filesystem=storage.filesystem, format=kind)
    except ArrowInvalid as error:
        reason = " ".join(str(error).split())[:200]
        raise BulkError(f"{printable(source)}: not a {kind} file: {reason}") from error
    names = table.schema.names
    if column not in names:
        raise BulkError(
            f"{printable(source)}: there is no column {column!r}, but {', '.join(names[:20])}; "
            "name it with --column"
        )
    for batch in table.to_batches(columns=[column]):
        if batch.column(0).null_count:
            raise BulkError(
                f"{printable(source)}: column {column!r} has rows without a path; leave them out"
            )
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
