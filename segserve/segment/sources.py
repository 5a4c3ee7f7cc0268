"""Lists the images of files, globs, folders and standard input. Does not read the images."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import SegmentError

STDIN = "-"
SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
"""The suffixes of the images in a folder, in upper or lower case."""

_MAGIC = re.compile(r"[*?[]")


@dataclass(frozen=True, slots=True)
class Source:
    """One image. All images of one argument share `root`, so that a million of them need little
    memory.

    Attributes:
        root: the folder of the argument, or the folder of a file; empty for the current folder.
        name: the path below `root`. The results keep this path.
    """

    root: str
    name: str
    is_stdin: bool = False

    @property
    def path(self) -> str:
        return STDIN if self.is_stdin else os.path.join(self.root, self.name)

    @property
    def stem(self) -> str:
        """The name without an image suffix. Other suffixes stay: they may distinguish `frame.0001`
        and `frame.0002`.
        """
        stem, suffix = os.path.splitext(self.name)
        return stem if suffix.lower() in SUFFIXES else self.name

    def __str__(self) -> str:
        return printable(self.path)


def printable(path: str) -> str:
    """A path as one line of text. Control characters and undecodable bytes are escaped."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in path
    )


def find_sources(arguments: Sequence[str], *, results: Path | None = None) -> list[Source]:
    """Lists the images of the arguments in order. The images of a folder or a glob are sorted.

    A folder is searched recursively, without hidden names, links to folders and files that are not
    images. Files and the matches of a glob are accepted with any suffix. Duplicates are removed.

    Args:
        results: the folder of results. Files in it are skipped if it lies in a searched folder or
            glob.

    Raises:
        SegmentError: an argument matches nothing, or is a folder without images.
    """
    sources: dict[Source, None] = {}
    for argument in arguments:
        found = dict.fromkeys(sources_of(argument, results=results))
        if not found:
            raise SegmentError(_nothing(argument))
        sources |= found
    return list(sources)


def sources_of(argument: str, *, results: Path | None = None) -> Iterator[Source]:
    """The images of one argument, listed lazily; see `find_sources`. Empty if the argument matches
    nothing.
    """
    if argument == STDIN:
        yield Source("", "stdin", is_stdin=True)
    elif os.path.isdir(argument):
        yield from _in_folder(argument.rstrip("/") or "/", results)
    elif os.path.lexists(argument):
        yield Source(*os.path.split(argument))
    elif _MAGIC.search(argument):
        yield from _matching(argument, results)


def _nothing(argument: str) -> str:
    if os.path.isdir(argument):
        return f"{printable(argument)}: the folder holds no images ({', '.join(SUFFIXES)})"
    if _MAGIC.search(argument):
        return f"{printable(argument)}: no file matches"
    return f"{printable(argument)}: there is no such file or folder"


def _in_folder(root: str, results: Path | None) -> Iterator[Source]:
    below = [""]
    while below:
        name = below.pop()
        folders = []
        for entry in _entries(os.path.join(root, name)):
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                folders += [] if _is_same(entry.path, results) else [os.path.join(name, entry.name)]
            elif entry.name.lower().endswith(SUFFIXES) and _is_image_file(entry):
                yield Source(root, os.path.join(name, entry.name))
        below += reversed(folders)


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise SegmentError(
            f"{printable(folder)}: the folder cannot be read: {error.strerror}"
        ) from error


def _is_image_file(entry: os.DirEntry[str]) -> bool:
    """Excludes pipes and sockets, because a read could block forever. Includes broken links: their
    read fails.
    """
    try:
        return entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path))
    except OSError:  # a link that points to itself
        return True


def _is_same(folder: str, results: Path | None) -> bool:
    return results is not None and results.exists() and os.path.samefile(folder, results)


def _matching(pattern: str, results: Path | None) -> Iterator[Source]:
    """Matches as a shell's glob, including `**`. Hidden names match only if the pattern names
    them.
    """
    parts = Path(pattern).parts
    first = next(index for index, part in enumerate(parts) if _MAGIC.search(part))
    root, rest = Path(*parts[:first]), os.path.join(*parts[first:])
    shows_hidden = any(part.startswith(".") for part in parts[first:])
    excluded = (
        results.resolve() if results and _is_within(results.resolve(), root.resolve()) else None
    )
    for path in sorted(root.glob(rest)):
        name = path.relative_to(root)
        is_hidden = any(part.startswith(".") for part in name.parts) and not shows_hidden
        if (
            is_hidden
            or path.is_dir()
            or (excluded and _is_within(path.absolute().resolve(), excluded))
        ):
            continue
        yield Source("" if root == Path() else str(root), str(name))


def _is_within(path: Path, folder: Path) -> bool:
    return folder in path.parents
