"""Opens a split of a data set in any of the supported layouts."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ...runtime.record import ClassInfo
from .coco import CocoInstances, CocoPanoptic
from .files import DataError, LabelledImages
from .voc import VocFolder

_PANOPTIC, _ANNOTATIONS = "panoptic", "annotations"
_KINDS = "instances", _PANOPTIC  # the names of COCO's JSON files start with one of these


def open_data(
    data: Path,
    split: str | None,
    classes: Sequence[ClassInfo],
    *,
    default_split: str = "train",
    images: Path | None = None,
    categories: Mapping[str, int] | None = None,
) -> LabelledImages:
    """Opens one split of a data set: COCO if the split has a JSON file, otherwise PASCAL VOC.

    Args:
        data: a folder with annotations/instances_SPLIT.json or annotations/panoptic_SPLIT.json, a
            folder in PASCAL VOC layout (see `VocFolder`), or the COCO JSON file of one split.
        split: a name, or the path of a COCO JSON file or of a .txt list in PASCAL VOC layout. None
            for the split of the file `data`, or the split `default_split` of the folder `data`.
        images: the folder of the images of a COCO file. By default SPLIT/ or images/ in the data
            set's folder, or the folder of a JSON file that was named itself.
        categories: COCO category -> class id, 255 for categories to ignore. By default each class
            takes the category with its own label.

    Raises:
        DataError: the data set, the split or a folder does not exist, or the split is empty.
    """
    if not data.exists():
        raise DataError(f"{data}: there is no such folder or file")
    named = _named_file(data, split)
    split = split or default_split
    path = named or _annotations(data, split)
    if path is None:
        if images:
            raise DataError(
                f"{data}: --images is for COCO JSON, and there is none for the split {split}"
            )
        return VocFolder(data, split)
    folder = images or (named.parent if named else _images(data, split))
    kind = CocoPanoptic if path.name.startswith(_PANOPTIC) else CocoInstances
    if categories is None:
        categories = {info.label: class_id for class_id, info in enumerate(classes)}
    return kind(path, folder, categories)


def dataset_name(data: Path) -> str:
    """The name of the data set's folder, for people. The file of a split is in it or in
    annotations/.
    """
    folder = data.resolve()
    if folder.is_file():
        folder = folder.parent
        folder = folder.parent if folder.name == _ANNOTATIONS else folder
    return folder.name


def _named_file(data: Path, split: str | None) -> Path | None:
    """The COCO JSON file that the split or else `data` names, if either does.

    Raises:
        DataError: `data` is the file of one split, and `split` is the name of another.
    """
    if split and split.endswith(".json"):
        return Path(split)
    if not data.is_file():
        return None
    if split:
        raise DataError(
            f"{data}: is the file of one split, so it has no split {split}: give the JSON file of "
            "that split instead of its name, or the folder above annotations/ as --data"
        )
    return data


def _annotations(folder: Path, split: str) -> Path | None:
    """The COCO JSON file of the split, or None if the folder has no such file for any split."""
    annotations = folder / _ANNOTATIONS
    existing = sorted(path.name for kind in _KINDS for path in annotations.glob(f"{kind}_*.json"))
    expected = [f"{kind}_{split}.json" for kind in _KINDS]
    found = [name for name in expected if name in existing]
    if existing and not found:
        raise DataError(
            f"{annotations}: expected {' or '.join(expected)}; there are {', '.join(existing)}"
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
