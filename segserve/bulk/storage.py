"""Files and folders on this machine, and by URI in any store of pyarrow or fsspec. Writes are
atomic.
"""

import os
import posixpath
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, BinaryIO, ClassVar, Self, cast
from urllib.parse import unquote

from ..runtime.files import whole_file

_URI = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<authority>[^/?]*)(?P<path>.*?)(?P<query>\?\w+=[^/]*)?$",
    re.DOTALL,
)

_PARTIAL = ".partial"


class BulkError(Exception):
    """Sources or results that cannot be used. The message is one line of text."""

    code: ClassVar[str] = "refused"
    """The error code in the table of a batch job, if a single image has this error."""


def printable(path: str) -> str:
    """A path as one line of text for a terminal. All that is not printable is escaped."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in path
    )


def storable(path: str) -> str:
    """A path as it is stored in a table or a data set. Undecodable bytes are escaped."""
    return path.encode(errors="backslashreplace").decode()


def absolute(location: str) -> str:
    """The absolute path; a URI is returned unchanged."""
    return location if _URI.fullmatch(location) else os.path.abspath(location)


@contextmanager
def errors_with_location(location: str) -> Iterator[None]:
    """Converts the errors of a disk or a store to a `BulkError` with the location."""
    try:
        yield
    except (OSError, ImportError, NotImplementedError, ValueError) as error:
        reason = " ".join(str(error).split())[:400]
        raise BulkError(f"{printable(location)}: {reason}") from error


@dataclass(frozen=True)
class Storage:
    """A file or a folder. The names in the arguments of the methods are paths below it.

    Attributes:
        filesystem: a pyarrow filesystem; None for this machine's own, which needs no pyarrow.
        query: the URI's options for the store, such as `?region=eu-west-1`.
    """

    path: str
    filesystem: Any = None
    scheme: str = ""
    query: str = ""

    @classmethod
    def at(cls, location: str) -> Self:
        """The storage at a path or a URI. Raises BulkError if the URI's store is not supported, or
        if it contains credentials.
        """
        match = _URI.fullmatch(location)
        if match is None:
            return cls(location.rstrip("/") or "/")
        scheme, authority, path, query = match.group("scheme", "authority", "path", "query")
        if scheme == "file":
            return cls(os.path.abspath(unquote(path)))
        if ":" in authority.rpartition("@")[0]:
            raise BulkError(
                f"{scheme}://: credentials within a URI would be written to the table; set those "
                "of the store in the environment"
            )
        filesystem, root = _filesystem(scheme, authority, query or "")
        return cls(root.rstrip("/") + path.rstrip("/"), filesystem, scheme, query or "")

    @property
    def is_local(self) -> bool:
        return self.filesystem is None

    def path_of(self, name: str) -> str:
        """The path in the store, for pyarrow."""
        return posixpath.join(self.path, name) if name else self.path

    def location(self, name: str) -> str:
        """The path or the URI of a file, as `at` accepts it."""
        path = self.path_of(name)
        return path if self.is_local else f"{self.scheme}://{path}{self.query}"

    def name_of(self, other: Self) -> str:
        """The path of the other storage below this one; it starts with `..` if it lies outside."""
        if self.filesystem != other.filesystem:
            return ".."
        if self.is_local:
            return os.path.relpath(os.path.realpath(other.path), os.path.realpath(self.path))
        return posixpath.relpath(other.path, self.path)

    def is_folder(self) -> bool:
        if self.is_local:
            return os.path.isdir(self.path)
        return bool(self._info("").type.name == "Directory")

    def exists(self, name: str = "") -> bool:
        if self.is_local:
            return os.path.lexists(self.path_of(name))
        return bool(self._info(name).type.name != "NotFound")

    def entries(self, folder: str) -> list[tuple[str, bool]]:
        """The names in a folder, sorted, and whether each is a folder.

        On this machine, links to folders are omitted, and everything that is neither a folder nor a
        file: reading a pipe could block forever. Broken links are kept, because their read fails.
        """
        path = self.path_of(folder)
        if not self.is_local:
            from pyarrow import fs

            found = self.filesystem.get_file_info(fs.FileSelector(path))
            return sorted((info.base_name, not info.is_file) for info in found)
        with os.scandir(path) as entries:
            return sorted(
                (entry.name, entry.is_dir(follow_symlinks=False))
                for entry in entries
                if entry.is_dir(follow_symlinks=False) or _is_readable(entry)
            )

    def names(self, folder: str) -> list[str]:
        """The sorted names of the files in a folder; empty if the folder does not exist."""
        if not self.exists(folder):
            return []
        return [name for name, is_folder in self.entries(folder) if not is_folder]

    def read_bytes(self, name: str = "") -> bytes:
        path = self.path_of(name)
        with open(path, "rb") if self.is_local else self.filesystem.open_input_stream(path) as file:
            return bytes(file.read())

    def read(self, name: str) -> bytes | None:
        """The content of a file; None if it does not exist."""
        with suppress(FileNotFoundError):
            return self.read_bytes(name)
        return None

    def write(self, name: str, content: bytes) -> None:
        with self.writer(name) as file:
            file.write(content)

    @contextmanager
    def writer(self, name: str) -> Iterator[BinaryIO]:
        """Opens a file that gets its name when it is complete. An object store does this itself."""
        path = self.path_of(name)
        if self.is_local:
            partials = self.path_of(_PARTIAL)  # one folder, for `sweep`
            for folder in (os.path.dirname(path), partials):
                os.makedirs(folder, exist_ok=True)
            with whole_file(path, folder=partials) as file:
                yield file
            return
        stream = self.filesystem.open_output_stream(path)
        try:
            yield cast(BinaryIO, stream)
        except BaseException:
            with suppress(Exception):
                stream.close()
                self.filesystem.delete_file(path)
            raise
        stream.close()

    def sweep(self) -> None:
        """Removes the incomplete files of killed processes. No other one may write meanwhile."""
        if self.is_local:
            self.delete(_PARTIAL)

    def delete(self, name: str) -> None:
        """Deletes a file, or a folder with its content, if it exists."""
        path = self.path_of(name)
        with suppress(FileNotFoundError):
            if not self.is_local and self._info(name).is_file:
                self.filesystem.delete_file(path)
            elif not self.is_local:
                self.filesystem.delete_dir(path)
            elif os.path.isdir(path):
                shutil.rmtree(path)
            else:
                os.unlink(path)

    def _info(self, name: str) -> Any:  # noqa: ANN401 - pyarrow is not typed
        return self.filesystem.get_file_info(self.path_of(name))


def _is_readable(entry: os.DirEntry[str]) -> bool:
    """Whether it is a file, a link to one, or a broken link."""
    path = entry.path
    return entry.is_file(follow_symlinks=False) or os.path.isfile(path) or not os.path.exists(path)


@lru_cache(maxsize=64)
def _filesystem(scheme: str, authority: str, query: str) -> tuple[Any, str]:
    """A store, and its root path: pyarrow's own filesystem if it has one, else fsspec's."""
    uri = f"{scheme}://{authority}{query}"
    with errors_with_location(uri):
        import fsspec
        from pyarrow import fs

        try:
            return cast(tuple[Any, str], fs.FileSystem.from_uri(uri))
        except ValueError as error:
            if "unrecognized filesystem type" not in str(error).lower():
                raise
        filesystem, root = fsspec.core.url_to_fs(uri)
        return fs.PyFileSystem(fs.FSSpecHandler(filesystem)), root
