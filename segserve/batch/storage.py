"""Files of any store that pyarrow reads, by path or URI. What is written is there whole or not at all."""

import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import BinaryIO, cast
from urllib.parse import unquote

from pyarrow import ArrowException, fs

from ..segment.errors import SegmentError
from ..segment.sources import printable

_URI = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<authority>[^/?]*)(?P<path>.*?)(?P<query>\?\w+=[^/]*)?$", re.DOTALL
)

# What a store's own library looks for, by scheme.
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "gcs": "GOOGLE_APPLICATION_CREDENTIALS",
    "abfs": "AZURE_STORAGE_ACCOUNT and its key",
    "abfss": "AZURE_STORAGE_ACCOUNT and its key",
    "hf": "HF_TOKEN",
}
_REFUSED = re.compile(r"access.?denied|forbidden|credential|unauthori[sz]ed|authentication|\b40[13]\b", re.IGNORECASE)
_PARTIAL = ".partial"


@dataclass(frozen=True)
class Place:
    """A file or a folder in a store; `query` is what its URI says about the store, such as `?region=eu-west-1`."""

    filesystem: fs.FileSystem
    path: str
    prefix: str = ""
    query: str = ""

    @property
    def is_local(self) -> bool:
        return isinstance(self.filesystem, fs.LocalFileSystem)

    def location_of(self, path: str) -> str:
        """What `place_of` takes to get to that path of the same store."""
        return path if self.is_local else f"{self.prefix}{path}{self.query}"

    def is_folder(self) -> bool:
        return bool(self.filesystem.get_file_info(self.path).type == fs.FileType.Directory)


def place_of(location: str) -> Place:
    """The place of a path or a URI.

    Raises:
        SegmentError: a URI of no store that can be read here, or credentials within it.
    """
    match = _URI.fullmatch(location)
    if match is None:
        return Place(_local(), os.path.abspath(location))
    scheme, authority, path, query = match.group("scheme", "authority", "path", "query")
    if scheme == "file":
        return Place(_local(), os.path.abspath(unquote(path)))
    if ":" in authority.rpartition("@")[0]:
        raise SegmentError(f"{scheme}://: credentials within a URI would end up in the table; set {_missing(scheme)}")
    filesystem, base = _filesystem(scheme, authority, query or "")
    return Place(filesystem, base.rstrip("/") + path, f"{scheme}://", query or "")


def read_bytes(location: str) -> bytes:
    """The content of a file.

    Raises:
        OSError: it cannot be read.
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
    """What a store refuses, as one line that names the location and, where these are what is missing, credentials.

    Raises:
        SegmentError: in place of what pyarrow raises.
    """
    try:
        yield
    except (OSError, ArrowException, ImportError) as error:
        reason = " ".join(str(error).split())
        hint = f"; are credentials missing? Set {_missing(_scheme(location))}" if _REFUSED.search(reason) else ""
        raise SegmentError(f"{printable(location)}: {reason[:400]}{hint}") from error


@dataclass(frozen=True)
class Storage:
    """A folder, by path or URI, that files are read from and written to by names below it."""

    place: Place

    @classmethod
    def at(cls, location: str) -> "Storage":
        return cls(place_of(location.rstrip("/") or "/"))

    def path(self, name: str) -> str:
        return f"{self.place.path}/{name}"

    def location(self, name: str) -> str:
        return self.place.location_of(self.path(name))

    def read(self, name: str) -> bytes | None:
        """The content of a file; None where it is not there."""
        try:
            return read_bytes(self.location(name))
        except FileNotFoundError:
            return None

    def exists(self, name: str) -> bool:
        return bool(self.place.filesystem.get_file_info(self.path(name)).type != fs.FileType.NotFound)

    def names(self, folder: str) -> list[str]:
        """Names of the files right in a folder, sorted; none where it is not there."""
        selector = fs.FileSelector(self.path(folder), allow_not_found=True)
        found = self.place.filesystem.get_file_info(selector)
        return sorted(info.base_name for info in found if info.type == fs.FileType.File)

    def write(self, name: str, content: bytes) -> None:
        with self.writer(name) as file:
            file.write(content)

    @contextmanager
    def writer(self, name: str) -> Iterator[BinaryIO]:
        """A file to write to that appears under its name when it is whole: an object store's does so by itself.

        Raises:
            OSError: it cannot be written.
        """
        if self.place.is_local:
            with self._local_writer(self.path(name)) as file:
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

    @contextmanager
    def _local_writer(self, path: str) -> Iterator[BinaryIO]:
        """Through a folder of its own, so that what a killed process leaves lies in one place."""
        partial = self.path(f"{_PARTIAL}/{uuid.uuid4().hex}")
        try:
            os.makedirs(os.path.dirname(partial), exist_ok=True)
            with open(partial, "wb") as file:
                yield file
            os.makedirs(os.path.dirname(path), exist_ok=True)
            os.replace(partial, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(partial)
            raise

    def sweep(self) -> None:
        """Removes what killed processes have left half written. Nobody else may be writing."""
        if self.place.is_local:
            self.delete_folder(_PARTIAL)

    def delete_folder(self, name: str) -> None:
        """With all that is in it; one that is not there is fine."""
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
    """A store and the path of its root within it: pyarrow's own where it has one, else that of fsspec."""
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
