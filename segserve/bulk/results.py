"""The results of a run: paths, formats, the settings that all of them share, and the log."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from errno import EEXIST, EILSEQ, EINVAL, EISDIR, ENAMETOOLONG, ENOTDIR
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import orjson

from ..runtime.files import whole_file, write_whole
from .sources import Source
from .storage import BulkError, Storage, absolute, printable, storable

if TYPE_CHECKING:
    from ..client import Segmentation
    from ..runtime.encode.mask import LabelMap

COCO_SUFFIX = ".coco.json"
DATA_SET_FILE = f"segmentation{COCO_SUFFIX}"
OPTIONS_FILE = ".segserve.json"
LOG_FILE = ".segserve-log.jsonl"
_OVERLAY_SUFFIX = "-overlay.jpg"
_INFO = {"description": "made by `segserve segment --format coco`"}
_REMEDY = "name another folder for the results"
_NAME_ERRORS = (EEXIST, EILSEQ, EINVAL, EISDIR, ENAMETOOLONG, ENOTDIR)


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


class LabelFormat(StrEnum):
    """`png`: class ids as an indexed PNG. `npy`: a NumPy file. `rle`: none, the table has RLE."""

    PNG = "png"
    NPY = "npy"
    RLE = "rle"


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

    def check(
        self, sources: Sequence[Source], arguments: Iterable[str], *, force: bool = False
    ) -> None:
        """Raises BulkError if two images have the same result, a result is one of the images or has
        the name of the data set, or the folder of results is a folder of images and the results are
        images too; without `force`, also if an existing result is that of another image.
        """
        if (self.format is Format.PNG or self.overlay) and self.folder.is_dir():
            folder = os.path.realpath(self.folder)
            if any(os.path.realpath(argument) == folder for argument in arguments):
                raise BulkError(
                    f"{printable(str(self.folder))}: the next run would take results in this "
                    f"folder for images; {_REMEDY}"
                )
        images = {os.path.abspath(source.location) for source in sources}
        source_of: dict[str, Source] = {}
        for source in sources:
            for path in self.files(source):
                if os.path.basename(path) == DATA_SET_FILE:
                    raise BulkError(
                        f"{source} would become {printable(path)}, the name of a whole data set; "
                        "rename it"
                    )
                if source_of.setdefault(path, source) is not source or (
                    os.path.abspath(path) in images
                ):
                    raise BulkError(
                        f"{source} would become {printable(path)}, which is another image or its "
                        f"result; rename one, or {_REMEDY}"
                    )
        if not force:
            self._check_existing(sources)

    def _check_existing(self, sources: Sequence[Source]) -> None:
        image_of = RunLog(self.folder).images()
        for source in sources if image_of else ():
            for path in self.files(source):
                image = image_of.get(os.path.relpath(path, self.folder))
                if image is None or image == absolute(source.location):
                    continue
                is_same = os.path.realpath(image) == os.path.realpath(source.location)
                if os.path.lexists(path) and not is_same:
                    raise BulkError(
                        f"{source} would become {printable(path)}, which is the result of "
                        f"{printable(image)}; {_REMEDY}, or overwrite it with --force"
                    )


def claim(
    storage: Storage,
    settings: Mapping[str, object],
    *,
    file: str = OPTIONS_FILE,
    reserved: Sequence[str] = (DATA_SET_FILE,),
    overwrite: bool = False,
) -> None:
    """Writes the settings to a file in the target, so that all results in it have the same ones.

    Args:
        settings: what the results depend on. None stands for the default.
        reserved: names of files and folders that a run overwrites. They must not exist before.
        overwrite: delete an earlier run's `reserved` files instead of comparing the settings.

    Raises:
        BulkError: the target contains results with other settings, or reserved files that no run
            created, or it is not writable.
    """
    target = printable(storage.location(""))
    given = {name: value for name, value in settings.items() if value is not None}
    try:
        content = storage.read(file)
        if content is None:
            for name in filter(storage.exists, reserved):
                raise BulkError(
                    f"{target}/{name} was not made here and would be overwritten; {_REMEDY}"
                )
        else:
            earlier = _settings(content, f"{target}/{file}")
            names = {name for name in earlier | given if earlier.get(name) != given.get(name)}
            if names and not overwrite:
                options = printable(", ".join(sorted(names)))
                raise BulkError(f"{target} holds results of other options ({options}); {_REMEDY}")
            for name in reserved if overwrite else ():
                storage.delete(name)
        storage.write(file, json.dumps(given, indent=2).encode())
        storage.sweep()
    except OSError as error:
        reason = error.strerror or error
        raise BulkError(f"{target}: cannot be written to ({reason}); {_REMEDY}") from error


def _settings(content: bytes, file: str) -> dict[str, object]:
    try:
        return dict(json.loads(content))
    except (TypeError, ValueError) as error:
        raise BulkError(f"{file} is damaged; remove it") from error


class RunLog:
    """The log of a folder of results: its failed images, and the image of each result.

    A failed image with a result counts as done all the same.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / LOG_FILE

    def failures(self) -> dict[str, tuple[str, str]]:
        """Error codes and messages by the absolute location of the image."""
        lines = (line for line in self._lines() if "code" in line)
        return {line["image"]: (line["code"], line["message"]) for line in lines}

    def images(self) -> dict[str, str]:
        """The absolute location of the image by the path of its result, below the folder."""
        return {line["result"]: line["image"] for line in self._lines() if "result" in line}

    def add_failure(self, source: Source, code: str, message: str) -> None:
        self._add(image=absolute(source.location), code=code, message=message)

    def add_result(self, source: Source, path: str) -> None:
        self._add(image=absolute(source.location), result=os.path.relpath(path, self._folder))

    def forget_failures(self) -> None:
        if self._path.exists():
            lines = [{"image": image, "result": path} for path, image in self.images().items()]
            write_whole(self._path, "".join(f"{json.dumps(line)}\n" for line in lines))

    def _lines(self) -> Iterator[dict[str, str]]:
        if self._path.exists():
            with self._path.open("rb") as file:
                for line in file:
                    with suppress(ValueError):  # a killed run wrote only a part of the line
                        yield json.loads(line)

    def _add(self, **line: str) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="ascii") as file:
            file.write(f"{json.dumps(line)}\n")


def concerns_one_name(error: OSError) -> bool:
    """Whether only the name of this file causes the error. Others affect the next file too."""
    return error.errno in _NAME_ERRORS


def code_and_reason(error: Exception) -> tuple[str, str]:
    """The error code of a failed image, and one line of text. The code is that of the error
    response, `file`, `server`, or `internal_error`.
    """
    from ..client import ClientError, ResponseError
    from ..runtime.errors import SegserveError

    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, ResponseError):
        return error.code, error.message
    if isinstance(error, SegserveError | BulkError):
        return error.code, text
    if isinstance(error, ClientError):
        return "server", text
    if isinstance(error, OSError):
        reason = os.strerror(error.errno) if error.errno else text[:400]
        return "file", f"cannot be read: {reason}"
    return "internal_error", f"{type(error).__name__}: {text[:400]}"


def encode_label_map(label_map: "LabelMap", palette: bytes, file_format: str) -> bytes:
    """Encodes uint8 (H, W) class ids as an indexed PNG (`png`) or as a NumPy file (`npy`)."""
    from ..runtime.encode.mask import encode_npy, encode_png

    return encode_png(label_map, palette) if file_format == "png" else encode_npy(label_map)


def encode_result(segmentation: "Segmentation", source: Source, file_format: Format) -> bytes:
    """Encodes the label map in the given format. `json` and `coco` also contain the classes."""
    if file_format is Format.JSON:
        return orjson.dumps(_as_response(segmentation))
    if file_format is Format.COCO:
        return orjson.dumps(as_coco(segmentation, source))
    return encode_label_map(segmentation.label_map, segmentation.palette, file_format)


def as_coco(segmentation: "Segmentation", source: Source) -> dict[str, object]:
    """A COCO data set of one image. `write_data_set` joins these."""
    height_px, width_px = segmentation.label_map.shape
    annotations = segmentation.to_coco(image_id=1)
    present = {annotation["category_id"] for annotation in annotations}
    return {
        "info": _INFO,
        "images": [
            {"id": 1, "file_name": storable(source.name), "width": width_px, "height": height_px}
        ],
        "annotations": annotations,
        "categories": [
            {"id": row.id, "name": row.label} for row in segmentation.classes if row.id in present
        ],
    }


def _as_response(segmentation: "Segmentation") -> dict[str, object]:
    """The server's JSON response to `mask=rle`."""
    from ..runtime.encode.mask import encode_rle

    height_px, width_px = segmentation.label_map.shape
    masks = encode_rle(segmentation.label_map, [row.id for row in segmentation.classes])
    return {
        "model": {"name": segmentation.model, "version": segmentation.model_version},
        "width": width_px,
        "height": height_px,
        "classes": [row.as_document() for row in segmentation.classes],
        "mask": {"encoding": "rle", "data": {str(number): mask for number, mask in masks.items()}},
    }


def write_data_set(folder: Path) -> Path:
    """Joins all COCO files that `as_coco` created in the folder to `segmentation.coco.json` there,
    without keeping all of them in memory. In the order of their paths, images and annotations are
    numbered from 1. Other data sets, and folders with the settings of another run, are left out.
    """
    target = folder / DATA_SET_FILE
    with whole_file(target) as file:
        file.write(b'{"info": ' + orjson.dumps(_INFO) + b',\n"images": [\n')
        numbered = enumerate(_documents(folder), start=1)
        images = ({**document["images"][0], "id": number} for number, document in numbered)
        _write_joined(file, images)
        file.write(b'],\n"annotations": [\n')
        _write_joined(file, _annotations(folder))
        categories = {row["id"]: row for one in _documents(folder) for row in one["categories"]}
        listed = [category for _, category in sorted(categories.items())]
        file.write(b'],\n"categories": ' + orjson.dumps(listed) + b"}\n")
    return target


def _write_joined(file: BinaryIO, rows: Iterator[dict[str, Any]]) -> None:
    separator = b""
    for row in rows:
        file.write(separator + orjson.dumps(row))
        separator = b",\n"


def _annotations(folder: Path) -> Iterator[dict[str, Any]]:
    annotation_ids = count(1)
    for image_id, document in enumerate(_documents(folder), start=1):
        for annotation in document["annotations"]:
            yield {**annotation, "id": next(annotation_ids), "image_id": image_id}


def _documents(folder: Path) -> Iterator[dict[str, Any]]:
    for parent, folders, names in os.walk(folder):
        folders.sort()
        if OPTIONS_FILE in names and Path(parent) != folder:
            folders.clear()
            continue
        for name in sorted(name for name in names if name.endswith(COCO_SUFFIX)):
            document = {} if name == DATA_SET_FILE else _read(Path(parent, name))
            if document.get("info") == _INFO:
                yield document


def _read(path: Path) -> dict[str, Any]:
    try:
        document = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError:
        return {}
    return document if isinstance(document, dict) else {}
