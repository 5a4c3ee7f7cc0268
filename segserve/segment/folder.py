"""The folder of results: files that are there whole or not at all, and all made with the same options."""

import errno
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from .errors import SegmentError
from .layout import DATA_SET_FILE

OPTIONS_FILE = ".segserve.json"
_DEFAULT = "default"

# What is wrong with the name of one file; any other error of the operating system would meet the next file as well.
_OF_ONE_NAME = {errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.EILSEQ, errno.EINVAL}


def claim_folder(folder: Path, options: Mapping[str, object]) -> None:
    """Makes the folder where it is missing, tries whether it can be written to, and notes the options in it.

    A result that is there counts as done: with other options that would be a mistake that nobody sees.

    Raises:
        SegmentError: the folder cannot be written to, or what is in it was made with other options.
    """
    note = folder / OPTIONS_FILE
    asked = {name: value for name, value in options.items() if value is not None}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        noted = _read(note)
        _check(folder, noted, asked)
        write_file(note, json.dumps(asked, indent=2).encode())
    except OSError as error:
        raise SegmentError(f"{folder}: cannot be written to ({error.strerror}); name another with -o") from error


def write_file(path: str | Path, content: bytes) -> None:
    """Writes a file as `whole_file` does."""
    with whole_file(path) as file:
        file.write(content)


@contextmanager
def whole_file(path: str | Path) -> Iterator[BinaryIO]:
    """A file to write to that appears under its name only when it is whole; its folder is made where it is missing.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    folder = os.path.dirname(path)
    partial = os.path.join(folder, f".segserve-{os.getpid()}.part")  # fits, however long the name of `path` is
    try:
        os.makedirs(folder or ".", exist_ok=True)
        with open(partial, "wb") as file:
            yield file
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(partial)
        raise


def concerns_one_name(error: OSError) -> bool:
    """Whether other files can still be written."""
    return error.errno in _OF_ONE_NAME


def _read(note: Path) -> dict[str, object] | None:
    try:
        noted = json.loads(note.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise SegmentError(f"{note}: is damaged; remove it if the results beside it may stay") from error
    return noted if isinstance(noted, dict) else None


def _check(folder: Path, noted: Mapping[str, object] | None, asked: Mapping[str, object]) -> None:
    if noted is None and (folder / DATA_SET_FILE).exists():
        raise SegmentError(f"{folder / DATA_SET_FILE} was not made here and would be overwritten; name another folder")
    if noted is not None and noted != asked:
        differing = sorted(name for name in noted.keys() | asked.keys() if noted.get(name) != asked.get(name))
        told = "; ".join(f"{n}: {noted.get(n, _DEFAULT)} then, {asked.get(n, _DEFAULT)} now" for n in differing)
        raise SegmentError(
            f"{folder} holds results of other options ({told}); name another folder with -o, or remove this one"
        )
