"""Files in any store that pyarrow supports, by path or URI. Writes are atomic."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import BinaryIO, cast
from urllib.parse import unquote

from pyarrow import ArrowException, fs

from ..runtime.files import whole_file
from ..segment.errors import SegmentError
from ..segment.sources import printable

_URI = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<authority>[^/?]*)(?P<path>.*?)(?P<query>\?\w+=[^/]*)?$",
    re.DOTALL,
)

# The environment variables that a store's library reads, by scheme.
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "gcs": "GOOGLE_APPLICATION_CREDENTIALS",
    "abfs": "AZURE_STORAGE_ACCOUNT and its key",
    "abfss": "AZURE_STORAGE_ACCOUNT and its key",
    "hf": "HF_TOKEN",
}
_REFUSED = re.compile(
    r"access.?denied|forbidden|credential|unauthori[sz]ed|authentication|\b40[13]\b", re.IGNORECASE
)
_PARTIAL = ".partial"


@dataclass(frozen=True)
class Place:
    """A file or a folder in a store. `query` is the URI's options for the store, such as
    `?region=eu-west-1`.
    """

    filesystem: fs.FileSystem
    path: str
    prefix: str = ""
    query: str = ""

    @property
    def is_local(self) -> bool:
        return isinstance(self.filesystem, fs.LocalFileSystem)

    def location_of(self, path: str) -> str:
        """The location of a path in the same store, as `place_of` accepts it."""
        return path if self.is_local else f"{self.prefix}{path}{self.query}"

    def is_folder(self) -> bool:
        return bool(self.filesystem.get_file_info(self.path).type == fs.FileType.Directory)


def place_of(location: str) -> Place:
    """The store and the path of a location.

    Args:
        location: a path or a URI.

    Raises:
        SegmentError: the URI's store is not supported, or the URI contains credentials.
    """
    match = _URI.fullmatch(location)
    if match is None:
        return Place(_local(), os.path.abspath(location))
    scheme, authority, path, query = match.group("scheme", "authority", "path", "query")
    if scheme == "file":
        return Place(_local(), os.path.abspath(unquote(path)))
    if ":" in authority.rpartition("@")[0]:
        raise SegmentError(
            f"{scheme}://: credentials within a URI would end up in the table; set "
            f"{_missing(scheme)}"
        )
    filesystem, base = _filesystem(scheme, authority, query or "")
    return Place(filesystem, base.rstrip("/") + path, f"{scheme}://", query or "")


def read_bytes(location: str) -> bytes:
    """Reads a file.

    Raises:
        OSError: the file cannot be read.
        SegmentError: as in `place_of`.
    """
    place = place_of(location)
    if place.is_local:
        with open(place.path, "rb") as file:
            return file.read()
    with place.filesystem.open_input_stream(place.path) as stream:
        return bytes(stream.read())


@contextmanager
def told_by_location(location: str) -> Iterator[None]:
    """Converts a store's errors to one line that names the location and, if they seem to be
    missing, the credentials.

    Raises:
        SegmentError: pyarrow or the store's library raised an error.
    """
    try:
        yield
    except (OSError, ArrowException, ImportError) as error:
        reason = " ".join(str(error).split())
        hint = (
            f"; are credentials missing? Set {_missing(_scheme(location))}"
            if _REFUSED.search(reason)
            else ""
        )
        raise SegmentError(f"{printable(location)}: {reason[:400]}{hint}") from error


@dataclass(frozen=True)
class Storage:
    """A folder, by path or URI. Its files are read and written by their names below it."""

    place: Place

    @classmethod
    def at(cls, location: str) -> "Storage":
        return cls(place_of(location.rstrip("/") or "/"))

    def path(self, name: str) -> str:
        return f"{self.place.path}/{name}"

    def location(self, name: str) -> str:
        return self.place.location_of(self.path(name))

    def read(self, name: str) -> bytes | None:
        """Reads a file; None if it does not exist."""
        try:
            return read_bytes(self.location(name))
        except FileNotFoundError:
            return None

    def exists(self, name: str) -> bool:
        return bool(
            self.place.filesystem.get_file_info(self.path(name)).type != fs.FileType.NotFound
        )

    def names(self, folder: str) -> list[str]:
        """The sorted names of the files directly in a folder; empty if the folder does not
        exist.
        """
        selector = fs.FileSelector(self.path(folder), allow_not_found=True)
        found = self.place.filesystem.get_file_info(selector)
        return sorted(info.base_name for info in found if info.type == fs.FileType.File)

    def write(self, name: str, content: bytes) -> None:
        with self.writer(name) as file:
            file.write(content)

    @contextmanager
    def writer(self, name: str) -> Iterator[BinaryIO]:
        """Opens a file for writing that gets its name when it is complete. An object store does
        this by itself.

        Raises:
            OSError: the file cannot be written.
        """
        if self.place.is_local:
            path, partials = self.path(name), self.path(_PARTIAL)  # one folder, for `sweep`
            for folder in (os.path.dirname(path), partials):
                os.makedirs(folder, exist_ok=True)
            with whole_file(path, folder=partials) as file:
                yield file
            return
        stream = self.place.filesystem.open_output_stream(self.path(name))
        try:
            yield cast(BinaryIO, stream)
        except BaseException:
            with suppress(Exception):
                stream.close()
                self.place.filesystem.delete_file(self.path(name))
            raise
        stream.close()

    def sweep(self) -> None:
        """Removes the incomplete files of killed processes. No other process may write at the same
        time.
        """
        if self.place.is_local:
            self.delete_folder(_PARTIAL)

    def delete_folder(self, name: str) -> None:
        """Deletes a folder and its content, if it exists."""
        with suppress(FileNotFoundError):
            self.place.filesystem.delete_dir(self.path(name))

    def delete(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self.place.filesystem.delete_file(self.path(name))


@lru_cache(maxsize=1)
def _local() -> fs.LocalFileSystem:
    return fs.LocalFileSystem()


@lru_cache(maxsize=64)
def _filesystem(scheme: str, authority: str, query: str) -> tuple[fs.FileSystem, str]:
    """A store, and its root path: pyarrow's own filesystem if it has one, else fsspec's."""
    uri = f"{scheme}://{authority}{query}"
    with told_by_location(uri):
        try:
            return cast(tuple[fs.FileSystem, str], fs.FileSystem.from_uri(uri))
        except ValueError as error:
            if "unrecognized filesystem type" not in str(error).lower():
                raise
        return _fsspec_filesystem(scheme, uri)


def _fsspec_filesystem(scheme: str, uri: str) -> tuple[fs.FileSystem, str]:
    import fsspec

    try:
        filesystem, root = fsspec.core.url_to_fs(uri)
    except ValueError as error:
        raise SegmentError(
            f"{scheme}://: no such store is known; s3, gs, hf and file are among those that are"
        ) from error
    return fs.PyFileSystem(fs.FSSpecHandler(filesystem)), root


def _scheme(location: str) -> str:
    return location.partition("://")[0]


def _missing(scheme: str) -> str:
    return _CREDENTIALS.get(scheme, f"what {scheme}:// needs in the environment")
