"""Files, globs, folders and standard input as a list of images. Nothing is read yet."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import SegmentError

STDIN = "-"
SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
"""What tells the images in a folder from other files, in upper or lower case."""

_MAGIC = re.compile(r"[*?[]")


@dataclass(frozen=True, slots=True)
class Source:
    """One image. `root` is shared by all that one argument named, so that a million of them take little memory.

    Attributes:
        root: the folder that the argument named, or that a file lies in; empty for the current one.
        name: the rest of the path, which is kept below the folder of results.
    """

    root: str
    name: str
    is_stdin: bool = False

    @property
    def path(self) -> str:
        return STDIN if self.is_stdin else os.path.join(self.root, self.name)

    @property
    def stem(self) -> str:
        """The name without the suffix of an image; any other stays, as it may tell `frame.0001` from `frame.0002`."""
        stem, suffix = os.path.splitext(self.name)
        return stem if suffix.lower() in SUFFIXES else self.name

    def __str__(self) -> str:
        return printable(self.path)


def printable(path: str) -> str:
    """A path on one line, whatever characters and bytes its name holds."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in path)


def find_sources(arguments: Sequence[str], *, results: Path | None = None) -> list[Source]:
    """The images that the arguments name, in order: what a folder or a glob holds is sorted.

    A folder is searched with all that are in it; hidden names, links to folders and other files than images are left
    out. Files and what a glob matches are taken as they are. An image that is named twice is taken once.

    Args:
        results: the folder of results; where it lies within a folder or a glob, nothing in it is taken.

    Raises:
        SegmentError: an argument names nothing, or a folder without images.
    """
    sources: dict[Source, None] = {}
    for argument in arguments:
        found = dict.fromkeys(sources_of(argument, results=results))
        if not found:
            raise SegmentError(_nothing(argument))
        sources |= found
    return list(sources)


def sources_of(argument: str, *, results: Path | None = None) -> Iterator[Source]:
    """What `find_sources` finds for one argument, listed as it is taken; nothing where the argument names nothing."""
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
        raise SegmentError(f"{printable(folder)}: the folder cannot be read: {error.strerror}") from error


def _is_image_file(entry: os.DirEntry[str]) -> bool:
    """Not a pipe or a socket, from which one would read for ever; a link that leads nowhere is told when it is read."""
    try:
        return entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path))
    except OSError:  # a link to itself
        return True


def _is_same(folder: str, results: Path | None) -> bool:
    return results is not None and results.exists() and os.path.samefile(folder, results)


def _matching(pattern: str, results: Path | None) -> Iterator[Source]:
    """Like a shell's glob, `**` for any number of folders included: hidden names only where the pattern says so."""
    parts = Path(pattern).parts
    first = next(index for index, part in enumerate(parts) if _MAGIC.search(part))
    root, rest = Path(*parts[:first]), os.path.join(*parts[first:])
    shows_hidden = any(part.startswith(".") for part in parts[first:])
    excluded = results.resolve() if results and _is_within(results.resolve(), root.resolve()) else None
    for path in sorted(root.glob(rest)):
        name = path.relative_to(root)
        is_hidden = any(part.startswith(".") for part in name.parts) and not shows_hidden
        if is_hidden or path.is_dir() or (excluded and _is_within(path.absolute().resolve(), excluded)):
            continue
        yield Source("" if root == Path() else str(root), str(name))


def _is_within(path: Path, folder: Path) -> bool:
    return folder in path.parents
