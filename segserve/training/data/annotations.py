"""Annotation files of other tools as COCO documents: CVAT's "CVAT for images" XML, Label Studio's
JSON, and labelme's JSON files.

Sources: CVAT's documentation of its XML format 1.1, Label Studio's export format (its brush masks
are a bit stream, see `_brush_mask`), labelme's JSON.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple
from urllib.parse import unquote, urlparse
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from .files import DataError, read_bytes

_START_BYTES = 64
_TEXT_TYPES = (b"<!DOCTYPE", b"<!ENTITY")  # entities may grow without limit


class AnnotatedImage(NamedTuple):
    """An image of an annotation file, with the label and COCO's `segmentation` of every object."""

    file_name: str
    width: int
    height: int
    shapes: Sequence[tuple[str, object]]


def as_coco(images: Iterable[AnnotatedImage]) -> bytes:
    """A COCO document of instances, as JSON. Later shapes of an image lie over earlier ones only
    where they are smaller, as everywhere in COCO.
    """
    listed = list(images)
    labels = sorted({label for image in listed for label, _ in image.shapes})
    ids = {label: number for number, label in enumerate(labels, start=1)}
    document = {
        "images": [
            {"id": key, "file_name": image.file_name, "width": image.width, "height": image.height}
            for key, image in enumerate(listed)
        ],
        "categories": [{"id": number, "name": label} for label, number in ids.items()],
        "annotations": [
            {
                "id": f"{image.file_name} {index}",
                "image_id": key,
                "category_id": ids[label],
                "segmentation": segmentation,
            }
            for key, image in enumerate(listed)
            for index, (label, segmentation) in enumerate(image.shapes, start=1)
        ],
    }
    return json.dumps(document).encode()


def _run_lengths(
    inside: NDArray[np.bool_], size_hw: tuple[int, int], left: int = 0, top: int = 0
) -> dict[str, object]:
    """COCO's run lengths of an image, from a mask within a box of it, bool (h, w)."""
    mask = np.zeros(size_hw, np.uint8, order="F")
    height, width = inside.shape
    part = mask[top : top + height, left:][:, :width]
    part |= inside[: part.shape[0], : part.shape[1]]
    encoded = coco_mask.encode(mask)
    return {"size": encoded["size"], "counts": encoded["counts"].decode("ascii")}


def _rectangle(left: float, top: float, right: float, bottom: float) -> list[float]:
    return [left, top, right, top, right, bottom, left, bottom]


def read_annotations(path: Path) -> bytes:
    """The annotations of a file of one of these tools as a COCO document; the content of any other
    file unchanged.

    Raises:
        DataError: the file is of one of the tools, but cannot be read.
    """
    content = read_bytes(path)
    if path.suffix.lower() == ".xml":
        return as_coco(_cvat(path, content))
    if content[:_START_BYTES].lstrip().startswith(b"["):
        return as_coco(_label_studio(path, _json(path, content)))
    return as_coco([_labelme(path, content)]) if _is_labelme(content) else content


def has_labelme(folder: Path) -> bool:
    """Whether a folder has a JSON file of labelme."""
    return any(_is_labelme(read_bytes(file)) for file in folder.glob("*.json"))


def read_labelme_folder(folder: Path) -> list[AnnotatedImage]:
    """The images of labelme's JSON files in a folder.

    Raises:
        DataError: a file cannot be read.
    """
    contents = ((file, read_bytes(file)) for file in sorted(folder.glob("*.json")))
    return [_labelme(file, content) for file, content in contents if _is_labelme(content)]


def _json(path: Path, content: bytes) -> Any:  # noqa: ANN401 - any JSON
    try:
        return json.loads(content)
    except ValueError as error:
        raise DataError(f"{path}: is not JSON: {error}") from error


# CVAT


def _cvat(path: Path, content: bytes) -> Iterator[AnnotatedImage]:
    if any(kind in content for kind in _TEXT_TYPES):
        raise DataError(f"{path}: document types and entities are not read")
    try:
        root = ElementTree.fromstring(content)  # noqa: S314 - without entities, checked above
    except ElementTree.ParseError as error:
        raise DataError(f"{path}: is not XML: {error}") from error
    images = root.findall("image")
    if not images:
        raise DataError(f"{path}: expected CVAT's `image` elements; export as 'CVAT for images'")
    for image in images:
        try:
            width, height = int(image.attrib["width"]), int(image.attrib["height"])
            shapes = [shape for part in image if (shape := _cvat_shape(part, (height, width)))]
            yield AnnotatedImage(image.attrib["name"], width, height, shapes)
        except (KeyError, ValueError) as error:
            name = image.attrib.get("name", "an image")
            raise DataError(f"{path}: {name}: cannot be read: {error}") from error


def _cvat_shape(part: ElementTree.Element, size_hw: tuple[int, int]) -> tuple[str, object] | None:
    """A polygon, a box's outline, or a mask; None for points, lines and tags."""
    given = part.attrib
    if part.tag == "polygon":
        points = [float(n) for pair in given["points"].split(";") for n in pair.split(",")]
        return given["label"], [points]
    if part.tag == "box":
        left, top, right, bottom = (float(given[name]) for name in ("xtl", "ytl", "xbr", "ybr"))
        return given["label"], [_rectangle(left, top, right, bottom)]
    if part.tag == "mask":
        return given["label"], _cvat_mask(given, size_hw)
    return None


def _cvat_mask(given: Mapping[str, str], size_hw: tuple[int, int]) -> dict[str, object]:
    """Run lengths within a box, row by row."""
    left, top, width, height = (int(given[name]) for name in ("left", "top", "width", "height"))
    counts = [int(count) for count in given["rle"].split(",")]
    if sum(counts) != width * height or min(counts) < 0:
        raise ValueError("the run lengths of a mask do not fill its box")
    inside = np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(height, width)
    return _run_lengths(inside, size_hw, left, top)


# Label Studio


def _label_studio(path: Path, tasks: Sequence[object]) -> Iterator[AnnotatedImage]:
    for task in tasks:
        if not isinstance(task, dict) or "data" not in task:
            raise DataError(f"{path}: expected Label Studio's tasks with `data` and `annotations`")
        annotations = task.get("annotations") or task.get("completions") or []
        results = [result for one in annotations[:1] for result in one.get("result", ())]
        sized = next((result for result in results if "original_width" in result), None)
        name = _image_name(task)
        if sized is None:
            continue  # without a result, the size of the image is unknown, and so are its labels
        width, height = int(sized["original_width"]), int(sized["original_height"])
        try:
            shapes = [s for result in results for s in _studio_shapes(result, width, height)]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise DataError(f"{path}: {name}: cannot be read: {error}") from error
        yield AnnotatedImage(name, width, height, shapes)


def _image_name(task: Mapping[str, Any]) -> str:
    """The file name of a task's image, without folders: uploads have addresses of their own."""
    data = task["data"]
    address = task.get("file_upload") or next(
        (str(value) for value in data.values() if isinstance(value, str)), ""
    )
    name = unquote(urlparse(str(address)).path or str(address))
    return PureWindowsPath(PurePosixPath(name).name).name


def _studio_shapes(result: Mapping[str, Any], width: int, height: int) -> list[tuple[str, object]]:
    kind, value = str(result.get("type", "")), result.get("value", {})
    labels = value.get(kind) or ()
    segmentation: object
    if kind.startswith("polygon"):
        points = np.array(value["points"], np.float64) * (width / 100, height / 100)
        segmentation = [points.ravel().tolist()]
    elif kind.startswith("rectangle"):
        left, top = value["x"] * width / 100, value["y"] * height / 100
        right, bottom = left + value["width"] * width / 100, top + value["height"] * height / 100
        segmentation = [_rectangle(left, top, right, bottom)]
    elif kind.startswith("brush"):
        segmentation = _run_lengths(_brush_mask(value["rle"], width, height), (height, width))
    else:
        return []
    return [(str(label), segmentation) for label in labels]


def _brush_mask(encoded: Sequence[int], width: int, height: int) -> NDArray[np.bool_]:
    """The mask of a brush: a bit stream of RGBA pixels, of which the alpha channel counts.

    It begins with the number of values (32 bits), the bits of a value minus 1 (5), and four
    lengths minus 1 (4 bits each). Then come runs: a bit that says whether one value is repeated, 2
    bits that select one of the lengths, the run's length minus 1, and the value or values.
    """
    bits = np.unpackbits(np.array(encoded, np.uint8))
    position = 0

    def number(size: int) -> int:
        nonlocal position
        part = bits[position : position + size]
        if len(part) < size:
            raise ValueError("the brush mask ends too early")
        position += size
        return int("".join(map(str, part.tolist())), 2)

    total, word = number(32), number(5) + 1
    if total != 4 * width * height:
        raise ValueError("the brush mask is of another size")
    sizes = [number(4) + 1 for _ in range(4)]
    values = np.zeros(total, np.uint8)
    place = 0
    while place < total:
        repeated = number(1)
        end = place + 1 + number(sizes[number(2)])
        if repeated:
            values[place:end] = number(word)
        else:
            for index in range(place, min(end, total)):
                values[index] = number(word)
        place = end
    return values.reshape(height, width, 4)[..., 3] > 0


# labelme


def _is_labelme(content: bytes) -> bool:
    return all(key in content for key in (b'"shapes"', b'"imagePath"', b'"imageHeight"'))


def _labelme(path: Path, content: bytes) -> AnnotatedImage:
    document = _json(path, content)
    try:
        shapes = [
            (str(shape["label"]), [_outline(shape)])
            for shape in document["shapes"]
            if shape.get("shape_type", "polygon") in ("polygon", "rectangle", "circle")
        ]
        return AnnotatedImage(
            PureWindowsPath(str(document["imagePath"])).name,
            int(document["imageWidth"]),
            int(document["imageHeight"]),
            shapes,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def _outline(shape: Mapping[str, Any]) -> list[float]:
    points = np.array(shape["points"], np.float64)
    kind = shape.get("shape_type", "polygon")
    if kind == "rectangle":
        (left, top), (right, bottom) = points
        return _rectangle(left, top, right, bottom)
    if kind == "circle":
        angles = np.linspace(0, 2 * np.pi, 64, endpoint=False)
        radius = float(np.hypot(*(points[1] - points[0])))
        points = points[0] + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    outline: list[float] = points.ravel().tolist()
    return outline
