"""The paths of every image's results, and the check that they overwrite nothing else."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from .errors import SegmentError
from .sources import Source, printable

COCO_SUFFIX = ".coco.json"
DATA_SET_FILE = f"segmentation{COCO_SUFFIX}"


class Format(StrEnum):
    """`png`: class ids as an indexed PNG. `npy`: a NumPy file. `json`: classes and RLE. `coco`: a
    COCO data set.
    """

    PNG = "png"
    NPY = "npy"
    JSON = "json"
    COCO = "coco"


_SUFFIX = {Format.PNG: ".png", Format.NPY: ".npy", Format.JSON: ".json", Format.COCO: COCO_SUFFIX}
_OVERLAY_SUFFIX = "-overlay.jpg"


@dataclass(frozen=True)
class Layout:
    """The result paths: `a/b.jpg` becomes `FOLDER/a/b.png` and, with `overlay`,
    `FOLDER/a/b-overlay.jpg`.
    """

    folder: Path
    format: Format = Format.PNG
    overlay: bool = False

    def result(self, source: Source) -> str:
        return os.path.join(self.folder, source.stem + _SUFFIX[self.format])

    def overlay_of(self, source: Source) -> str:
        return os.path.join(self.folder, source.stem + _OVERLAY_SUFFIX)

    def files(self, source: Source) -> list[str]:
        return [self.result(source), *([self.overlay_of(source)] if self.overlay else [])]

    def missing(self, source: Source) -> list[str]:
        """The result files that do not exist. A folder of the same name counts as missing and fails
        at the write.
        """
        return [
            path
            for path in self.files(source)
            if not (os.path.isfile(path) or os.path.islink(path))
        ]

    def check(self, sources: Sequence[Source], arguments: Iterable[str]) -> None:
        """Checks that all results are different files, and that no result is one of the images.

        Raises:
            SegmentError: two images have the same result, a result is one of the images, or the
                folder of results is a folder of images and the results are images too.
        """
        images_come_out = self.format is Format.PNG or self.overlay
        if images_come_out and (
            same := next((a for a in arguments if _is_same_folder(a, self.folder)), None)
        ):
            raise SegmentError(
                f"{printable(same)}: results among the images would be taken for images the next "
                "time; name another "
                "folder with -o"
            )
        made_from: dict[str, Source] = {
            os.path.join(self.folder, DATA_SET_FILE): Source("", DATA_SET_FILE)
        }
        for source in sources:
            for path in self.files(source):
                other = made_from.setdefault(path, source)
                if other is not source:
                    raise SegmentError(
                        f"{source} and {other} would both become {printable(path)}; rename one, or "
                        "give each a folder "
                        "of its own with -o"
                    )
        self._check_images_stay(sources, made_from)

    def _check_images_stay(self, sources: Sequence[Source], results: Iterable[str]) -> None:
        images = {os.path.abspath(source.path) for source in sources}
        for path in results:
            if os.path.abspath(path) in images:
                raise SegmentError(
                    f"{printable(path)} is both an image and a result; name another folder with -o"
                )


def _is_same_folder(argument: str, folder: Path) -> bool:
    return os.path.isdir(argument) and folder.is_dir() and os.path.samefile(argument, folder)
