"""The folder of results. All results in it have the same options."""

import errno
import json
from collections.abc import Mapping
from pathlib import Path

from ..runtime.files import write_whole
from .errors import SegmentError
from .layout import DATA_SET_FILE

OPTIONS_FILE = ".segserve.json"
_DEFAULT = "default"

# Errors that concern the name of one file. Any other error of the operating system would affect the
# next file too.
_OF_ONE_NAME = {
    errno.ENAMETOOLONG,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.EILSEQ,
    errno.EINVAL,
}


def claim_folder(folder: Path, options: Mapping[str, object]) -> None:
    """Creates the folder if it is missing, checks that it is writable, and writes the options to
    it.

    The options are checked because existing results count as done. With other options, that would
    be a silent error.

    Raises:
        SegmentError: the folder is not writable, or its results were made with other options.
    """
    note = folder / OPTIONS_FILE
    asked = {name: value for name, value in options.items() if value is not None}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        noted = _read(note)
        _check(folder, noted, asked)
        write_whole(note, json.dumps(asked, indent=2))
    except OSError as error:
        raise SegmentError(
            f"{folder}: cannot be written to ({error.strerror}); name another with -o"
        ) from error


def concerns_one_name(error: OSError) -> bool:
    """Whether the error concerns only this file's name, so that other files can still be
    written.
    """
    return error.errno in _OF_ONE_NAME


def _read(note: Path) -> dict[str, object] | None:
    try:
        noted = json.loads(note.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise SegmentError(
            f"{note}: is damaged; remove it if the results beside it may stay"
        ) from error
    return noted if isinstance(noted, dict) else None


def _check(folder: Path, noted: Mapping[str, object] | None, asked: Mapping[str, object]) -> None:
    if noted is None and (folder / DATA_SET_FILE).exists():
        raise SegmentError(
            f"{folder / DATA_SET_FILE} was not made here and would be overwritten; name another "
            "folder"
        )
    if noted is not None and noted != asked:
        differing = sorted(
            name for name in noted.keys() | asked.keys() if noted.get(name) != asked.get(name)
        )
        told = "; ".join(
            f"{n}: {noted.get(n, _DEFAULT)} then, {asked.get(n, _DEFAULT)} now" for n in differing
        )
        raise SegmentError(
            f"{folder} holds results of other options ({told}); name another folder with -o, or "
            "remove this one"
        )
