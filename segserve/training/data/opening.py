"""Opens a split of a data set in any of the supported layouts."""

from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Annotated, Self

from pydantic import BeforeValidator, Field, model_validator

from ...runtime.errors import ModelError
from ...runtime.record import ClassInfo, Strict, read_document, voc_color
from .annotations import has_labelme, read_annotations, read_labelme_folder
from .coco import CocoInstances, CocoPanoptic
from .files import AS_USUAL, IGNORED, DataError, LabelledImages, ReadOptions
from .folders import (
    LABELMAP,
    ROBOFLOW_CLASSES,
    SEEDED_SPLITS,
    VocFolder,
    cityscapes,
    is_voc,
    roboflow_masks,
    seeded_split,
    voc_splits,
)
from .label_images import LabelCoding, read_labelmap
from .shapes import as_coco

_PANOPTIC, _ANNOTATIONS = "panoptic", "annotations"
_ROBOFLOW_JSON = "_annotations.coco.json"
_KINDS = "instances", _PANOPTIC  # the names of COCO's JSON files start with one of these


def open_data(
    data: Path,
    split: str | None,
    classes: Sequence[ClassInfo],
    *,
    default_split: str = "train",
    images: Path | None = None,
    categories: Mapping[str, int] | None = None,
    options: ReadOptions = AS_USUAL,
) -> LabelledImages:
    """Opens one split of a data set: COCO if the split has a JSON file, Cityscapes or Roboflow's
    masks by their folders, labelme by its JSON files, otherwise PASCAL VOC.

    Args:
        data: a folder with annotations/instances_SPLIT.json or annotations/panoptic_SPLIT.json, a
            folder in PASCAL VOC layout (see `VocFolder`), or the file of one split: COCO
            JSON, CVAT's XML, Label Studio's or labelme's JSON.
        split: a name, or the path of an annotation file or of a .txt list in PASCAL VOC layout.
            None for the split of the file `data`, or `default_split` of the folder `data`.
        images: the folder of the images of an annotation file. By default SPLIT/ or images/ in the
            data set's folder, or the folder of a file that was named itself.
        categories: category of the data set -> class id, 255 for categories to ignore. By default
            each class takes the category with its own label.

    Raises:
        DataError: the data set, the split or a folder does not exist, or the split is empty.
    """
    if not data.exists():
        raise DataError(f"{data}: there is no such folder or file")
    if categories is None:
        categories = {info.label: class_id for class_id, info in enumerate(classes)}
    named = _named_file(data, split)
    split = _existing_split(data, split or default_split)
    if not named:
        _require_split(data, split, _roboflow_splits(data))
    path = named or _annotations(data, split)
    if path is None:
        if images:
            raise DataError(
                f"{data}: --images is for COCO JSON, and there is none for the split {split}"
            )
        return _folder(data, split, classes, categories, options)
    folder = images or (named.parent if named else _images(data, split))
    if path.name.startswith(_PANOPTIC):
        return CocoPanoptic(path, folder, categories)
    content, notes = read_annotations(path, folder, skip_broken=options.skip_broken)
    return CocoInstances(path, folder, categories, options, content, notes)


def split_names(data: Path) -> list[str]:
    """The splits of a data set's folder, in alphabetical order."""
    annotations = {
        path.stem.removeprefix(f"{kind}_")
        for kind in _KINDS
        for path in (data / _ANNOTATIONS).glob(f"{kind}_*.json")
    }
    cities = {path.name for path in (data / "leftImg8bit").glob("*/")}
    return sorted(
        annotations
        or _roboflow_splits(data)
        or cities
        or _labelme_splits(data)
        or (SEEDED_SPLITS if has_labelme(data) else voc_splits(data))
    )


def _require_split(data: Path, split: str, known: Set[str]) -> None:
    if known and split not in known:
        raise DataError(f"{data}: there is no split {split}; there are {', '.join(sorted(known))}")


def _roboflow_splits(data: Path) -> set[str]:
    return {
        path.parent.name
        for name in (_ROBOFLOW_JSON, ROBOFLOW_CLASSES)
        for path in data.glob(f"*/{name}")
    }


def _labelme_splits(data: Path) -> set[str]:
    """The subfolders with labelme's JSON files. In PASCAL VOC layout they are no splits."""
    if is_voc(data):
        return set()
    return {folder.name for folder in data.glob("*/") if has_labelme(folder)}


def _labelme(
    data: Path, split: str, categories: Mapping[str, int], options: ReadOptions
) -> LabelledImages | None:
    """The split's folder of labelme's JSON files, or else the part of one folder that a fixed seed
    gives the split; None without such files.
    """
    splits = _labelme_splits(data)
    _require_split(data, split, splits)
    folder, source = data / split if splits else data, data / split
    images = read_labelme_folder(folder)
    if not images:
        return None
    seed_notes: list[str] = []
    if not splits:
        chosen, *seed_notes = seeded_split((image.file_name for image in images), split, source)
        kept = {*chosen}
        images = [image for image in images if image.file_name in kept]
    content, notes = as_coco(source, images, skip_broken=options.skip_broken)
    return CocoInstances(source, folder, categories, options, content, [*seed_notes, *notes])


def _folder(
    data: Path,
    split: str,
    classes: Sequence[ClassInfo],
    categories: Mapping[str, int],
    options: ReadOptions,
) -> LabelledImages:
    if (data / "leftImg8bit").is_dir() and (data / "gtFine").is_dir():
        return cityscapes(data, split, categories)
    if (data / split / ROBOFLOW_CLASSES).is_file():
        return roboflow_masks(data / split, categories)
    if labelme := _labelme(data, split, categories, options):
        return labelme
    labelmap = data / LABELMAP
    coding = LabelCoding.of(
        classes,
        colors=read_labelmap(labelmap) if labelmap.is_file() else None,
        categories=categories,
        ignore_id=options.ignore_id,
    )
    return VocFolder(data, split, coding)


def _existing_split(data: Path, split: str) -> str:
    """The split, or Roboflow's name of it."""
    if split in ("dev", "val") and not (data / split).is_dir() and (data / "valid").is_dir():
        return "valid"
    return split


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
    """The annotation file that the split or else `data` names, if either does."""
    if split and split.endswith((".json", ".xml")):
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
    beside_images = folder / split / _ROBOFLOW_JSON
    if beside_images.is_file():
        return beside_images
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
    if folder := next((path for path in candidates if path.is_dir()), None):
        return folder
    raise DataError(
        f"{data}: expected the images in {' or '.join(map(str, candidates))}; name their folder "
        "(--images)"
    )


class ListedClass(ClassInfo):
    categories: Annotated[
        tuple[Annotated[str, BeforeValidator(str)], ...] | None, Field(alias="from")
    ] = None


class ClassFile(Strict):
    """The id of a class is its index in the list. Pixels without a COCO annotation are class 0.

    Attributes:
        ignore: COCO categories whose pixels belong to no class.
    """

    listed: Annotated[
        tuple[ListedClass, ...], Field(alias="classes", min_length=2, max_length=IGNORED)
    ]
    ignore: tuple[Annotated[str, BeforeValidator(str)], ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, content: object) -> object:
        """Accepts a plain list of classes, plain labels, and classes without a colour."""
        document = {"classes": content} if isinstance(content, list) else content
        if not isinstance(document, dict):
            raise ValueError("expected a list of classes")
        if not isinstance(document.get("classes"), list):
            return document
        colored = []
        for class_id, listed in enumerate(document["classes"]):
            entry = {"label": listed} if isinstance(listed, str) else listed
            color = {"color": voc_color(class_id)}
            colored.append(color | entry if isinstance(entry, dict) else entry)
        return {**document, "classes": colored}

    @model_validator(mode="after")
    def _names_are_distinct(self) -> Self:
        for kind, names in (
            ("label", [entry.label for entry in self.listed]),
            ("category", [name for name, _ in self._category_ids()]),
        ):
            repeated = sorted({name for name in names if names.count(name) > 1})
            if repeated:
                raise ValueError(f"{kind} {', '.join(repeated)} is listed more than once")
        return self

    @property
    def classes(self) -> tuple[ClassInfo, ...]:
        return tuple(ClassInfo(label=entry.label, color=entry.color) for entry in self.listed)

    @property
    def categories(self) -> dict[str, int]:
        """COCO category -> class id, 255 for categories to ignore."""
        return dict(self._category_ids())

    def _category_ids(self) -> Iterator[tuple[str, int]]:
        for class_id, entry in enumerate(self.listed):
            names = (entry.label,) if entry.categories is None else entry.categories
            yield from ((name, class_id) for name in names)
        yield from ((name, IGNORED) for name in self.ignore)


def read_class_file(path: Path) -> ClassFile:
    """Reads a class file. Raises DataError with all rules that it breaks."""
    try:
        return read_document(path, ClassFile)
    except ModelError as error:
        raise DataError(str(error)) from error
