"""The results of a run: their paths, the settings that all of them share, and the failed images."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from .errors import BulkError, printable
from .sources import Source, is_same_folder
from .storage import Storage

COCO_SUFFIX = ".coco.json"
DATA_SET_FILE = f"segmentation{COCO_SUFFIX}"
OPTIONS_FILE = ".segserve.json"
FAILURES_FILE = ".segserve-failed.jsonl"
_OVERLAY_SUFFIX = "-overlay.jpg"
_SETTINGS = TypeAdapter(dict[str, object])


class Format(StrEnum):
    """`png`: class ids as an indexed PNG. `npy`: a NumPy file. `json`: classes and RLE. `coco`: a
    COCO data set.
    """

    PNG = "png"
    NPY = "npy"
    JSON = "json"
    COCO = "coco"

    @property
    def suffix(self) -> str:
        return COCO_SUFFIX if self is Format.COCO else f".{self}"


@dataclass(frozen=True)
class Layout:
    """The result paths: `a/b.jpg` becomes `a/b.png` and, with `overlay`, `a/b-overlay.jpg`."""

    folder: Path
    format: Format = Format.PNG
    overlay: bool = False

    def result(self, source: Source) -> str:
        return os.path.join(self.folder, source.stem + self.format.suffix)

    def files(self, source: Source) -> list[str]:
        overlay = os.path.join(self.folder, source.stem + _OVERLAY_SUFFIX)
        return [self.result(source), *([overlay] if self.overlay else [])]

    def missing(self, source: Source) -> list[str]:
        """The result files that do not exist. A folder of that name fails only at the write."""
        paths = self.files(source)
        return [path for path in paths if not (os.path.isfile(path) or os.path.islink(path))]

    def check(self, sources: Sequence[Source], arguments: Iterable[str]) -> None:
        """Raises BulkError if two images have the same result, a result is one of the images, or
        the folder of results is a folder of images and the results are images too.
        """
        writes_images = self.format is Format.PNG or self.overlay
        for argument in arguments:
            if writes_images and is_same_folder(argument, self.folder):
                raise BulkError(
                    f"{printable(argument)}: the next run would take results in this folder for "
                    "images; name another folder with -o"
                )
        images = {os.path.abspath(source.location) for source in sources}
        data_set = Source(DATA_SET_FILE, DATA_SET_FILE)
        source_of = {os.path.join(self.folder, DATA_SET_FILE): data_set}
        for source in sources:
            for path in self.files(source):
                other = source_of.setdefault(path, source)
                if other is not source:
                    raise BulkError(
                        f"{source} and {other} would both become {printable(path)}; rename one, or "
                        "name a separate folder for each with -o"
                    )
                if os.path.abspath(path) in images:
                    raise BulkError(
                        f"{printable(path)} is both an image and a result; name another folder "
                        "with -o"
                    )


def claim(
    storage: Storage,
    settings: Mapping[str, object],
    *,
    file: str = OPTIONS_FILE,
    reserved: Sequence[str] = (DATA_SET_FILE,),
    remedy: str = "name another folder with -o",
    overwrite: bool = False,
) -> None:
    """Writes the settings to a file in the target, so that all results in it have the same ones.
    Existing results count as done: with other settings, that would be a silent error.

    Args:
        settings: what the results depend on. None stands for the default.
        reserved: names of files and folders that a run overwrites. They must not exist before.
        remedy: what to do after an error, for its message.
        overwrite: delete an earlier run's `reserved` files instead of comparing the settings.

    Raises:
        BulkError: the target contains results with other settings, or reserved files that no run
            created, or it is a folder of this machine that is not writable.
        OSError: the store is not writable.
    """
    target = printable(storage.location(""))
    given = _without_defaults(settings)
    try:
        content = storage.read(file)
        if content is None:
            for name in filter(storage.exists, reserved):
                raise BulkError(
                    f"{target}/{name} was not made here and would be overwritten; {remedy}"
                )
        else:
            try:
                earlier = _without_defaults(_SETTINGS.validate_json(content))
            except ValidationError as error:
                raise BulkError(f"{target}/{file} is damaged; remove it, or {remedy}") from error
            for name in reserved if overwrite else ():
                storage.delete(name)
            if not overwrite and earlier != given:
                differences = _differences(earlier, given)
                raise BulkError(
                    f"{target} holds results of other options ({differences}); {remedy}"
                )
        storage.write(file, json.dumps(given, indent=2).encode())
        storage.sweep()
    except OSError as error:
        if not storage.is_local:
            raise
        raise BulkError(f"{target}: cannot be written to ({error.strerror}); {remedy}") from error


class FailureLog:
    """The failed images of a folder of results. One with a result counts as done all the same."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FAILURES_FILE

    def read(self) -> dict[str, tuple[str, str]]:
        """Error codes and messages by path."""
        failures = {}
        for line in self._path.read_bytes().splitlines() if self._path.exists() else ():
            with suppress(ValueError):  # a killed run wrote only a part of the line
                path, code, message = json.loads(line)
                failures[path] = code, message
        return failures

    def add(self, source: Source, code: str, message: str) -> None:
        line = json.dumps([os.path.abspath(source.location), code, message])
        with self._path.open("a", encoding="ascii") as file:
            file.write(f"{line}\n")

    def clear(self) -> None:
        self._path.unlink(missing_ok=True)


def _without_defaults(settings: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in settings.items() if value is not None}


def _differences(earlier: Mapping[str, object], given: Mapping[str, object]) -> str:
    differences = (
        f"{name}: {earlier.get(name, 'default')} then, {given.get(name, 'default')} now"
        for name in sorted(earlier.keys() | given.keys())
        if earlier.get(name) != given.get(name)
    )
    return printable("; ".join(differences))
