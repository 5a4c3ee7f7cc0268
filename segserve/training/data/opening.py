"""Which layout a data set has."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ...runtime.record import ClassInfo
from .classes import categories_of
from .coco import CocoInstances
from .errors import DataError
from .labelled import LabelledImages
from .panoptic import CocoPanoptic
from .voc import VocFolder

_PANOPTIC = "panoptic"
_KINDS = "instances", _PANOPTIC  # how the names of COCO's JSON files begin


def open_data(
    data: Path,
    split: str,
    classes: Sequence[ClassInfo],
    *,
    images: Path | None = None,
    categories: Mapping[str, int] | None = None,
) -> LabelledImages:
    """Opens one split of a data set: COCO where there is such a JSON file, and otherwise PASCAL
    VOC.

    Args:
        data: a folder with annotations/instances_SPLIT.json or annotations/panoptic_SPLIT.json, a
            folder in PASCAL VOC layout, see `VocFolder`, or a COCO JSON file.
        split: a name, or the path of a COCO JSON file or of a .txt list in PASCAL VOC layout.
        images: folder of the images of a COCO file: by default SPLIT/ or images/ in the data set's
            folder, or that of the file where the file itself was named.
        categories: the class id of each COCO category by its name, 255 for those to ignore; by
            default each class takes the category that is called like it.

    Raises:
        DataError: there is no such data set, split or folder, or the split is empty.
    """
    if not data.exists():
        raise DataError(f"{data}: there is no such folder or file")
    named = data if data.is_file() else Path(split) if split.endswith(".json") else None
    path = named or _annotations(data, split)
    if path is None:
        if images:
            raise DataError(
                f"{data}: --images is for COCO JSON, and there is none for the split {split}"
            )
        return VocFolder(data, split)
    folder = images or (named.parent if named else _images(data, split))
    kind = CocoPanoptic if path.name.startswith(_PANOPTIC) else CocoInstances
    return kind(path, folder, categories_of(classes) if categories is None else categories)


def _annotations(folder: Path, split: str) -> Path | None:
    """The COCO JSON of that split, or None where the folder holds no such file for any split."""
    annotations = folder / "annotations"
    there = sorted(path.name for kind in _KINDS for path in annotations.glob(f"{kind}_*.json"))
    expected = [f"{kind}_{split}.json" for kind in _KINDS]
    found = [name for name in expected if name in there]
    if there and not found:
        raise DataError(
            f"{annotations}: expected {' or '.join(expected)}; there are {', '.join(there)}"
        )
    return annotations / found[0] if found else None


def _images(data: Path, split: str) -> Path:
    candidates = data / split, data / "images"
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise DataError(
        f"{data}: expected the images in {' or '.join(map(str, candidates))}; name their folder "
        "(--images)"
    )
