"""Annotation files of other tools as COCO documents: CVAT's "CVAT for images" XML, Label Studio's
JSON, and labelme's JSON files.

Sources: CVAT's documentation of its XML format 1.1, Label Studio's export format (its brush masks
are a bit stream, see `_brush_mask`), labelme's JSON.
"""

import base64
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from .files import DataError, image_size, read_bytes
from .label_images import decode_png
from .shapes import (
    AnnotatedImage,
    Converted,
    Shape,
    as_coco,
    ellipse,
    polygon,
    rectangle,
    run_lengths,
)

_START_BYTES = 64
_TEXT_TYPES = (b"<!DOCTYPE", b"<!ENTITY")  # entities may grow without limit


def read_annotations(path: Path, images: Path, *, skip_broken: bool) -> Converted:
    """The annotations of a file of one of these tools as a COCO document; the content of any other
    file unchanged.

    Args:
        images: the folder of the images.
        skip_broken: as of `as_coco`.

    Raises:
        DataError: the file is of one of the tools, but cannot be read.
    """
    content = read_bytes(path)
    if path.suffix.lower() == ".xml":
        found: Iterable[AnnotatedImage] = _cvat(path, content)
    elif content[:_START_BYTES].lstrip().startswith(b"["):
        found = _label_studio(path, _json(path, content), images)
    elif _is_labelme(content):
        found = [_labelme(path, content)]
    else:
        return Converted(content)
    return as_coco(path, found, skip_broken=skip_broken)


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
            shapes = [
                Shape(part.tag, part.attrib["label"], _cvat_segmentation(part, (height, width)))
                for part in image
                if part.tag != "tag"  # a label of the whole image
            ]
            yield AnnotatedImage(image.attrib["name"], width, height, shapes)
        except (KeyError, ValueError) as error:
            name = image.attrib.get("name", "an image")
            raise DataError(f"{path}: {name}: cannot be read: {error}") from error


def _cvat_segmentation(part: ElementTree.Element, size_hw: tuple[int, int]) -> object:
    """COCO's segmentation; None for a shape that is not drawn."""
    given = part.attrib
    degrees = float(given.get("rotation", 0))  # about the centre
    if part.tag == "polygon":
        points = [[float(n) for n in pair.split(",")] for pair in given["points"].split(";")]
        return polygon(np.array(points))
    if part.tag == "box":
        left, top, right, bottom = (float(given[name]) for name in ("xtl", "ytl", "xbr", "ybr"))
        center_xy = (left + right) / 2, (top + bottom) / 2
        return polygon(rectangle(left, top, right, bottom), degrees, center_xy)
    if part.tag == "ellipse":
        x, y, radius_x, radius_y = (float(given[name]) for name in ("cx", "cy", "rx", "ry"))
        return polygon(ellipse((x, y), radius_x, radius_y), degrees, (x, y))
    return _cvat_mask(given, size_hw) if part.tag == "mask" else None


def _cvat_mask(given: Mapping[str, str], size_hw: tuple[int, int]) -> dict[str, object]:
    """Run lengths within a box, row by row."""
    left, top, width, height = (int(given[name]) for name in ("left", "top", "width", "height"))
    counts = [int(count) for count in given["rle"].split(",")]
    if sum(counts) != width * height or min(counts) < 0:
        raise ValueError("the run lengths of a mask do not fill its box")
    inside = np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(height, width)
    return run_lengths(inside, size_hw, left, top)


# Label Studio


_STUDIO_SHAPES = {"polygon", "rectangle", "ellipse", "brush", "keypoint", "bitmask", "vector"}
_STUDIO_FILES = "/data/local-files"  # its addresses give the file's path as the query's `d`


def _label_studio(path: Path, tasks: Sequence[object], images: Path) -> Iterator[AnnotatedImage]:
    for task in tasks:
        if not isinstance(task, dict) or "data" not in task:
            raise DataError(f"{path}: expected Label Studio's tasks with `data` and `annotations`")
        annotations = task.get("annotations") or task.get("completions") or []
        submitted = [one for one in annotations if not one.get("was_cancelled")]
        if not submitted:
            continue  # the image is not labelled
        results = submitted[0].get("result") or ()
        name = _image_name(task)
        try:
            width, height = _studio_size(results, images / name)
            shapes = list(_studio_shapes(results, width, height))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise DataError(f"{path}: {name}: cannot be read: {error}") from error
        yield AnnotatedImage(name, width, height, shapes)


def _studio_size(results: Sequence[Mapping[str, Any]], image: Path) -> tuple[int, int]:
    """Width and height of an image. Only results give them, so without any the file is read."""
    for result in results:
        if "original_width" in result:
            return int(result["original_width"]), int(result["original_height"])
    try:
        height, width = image_size(image)
    except DataError:
        return 1, 1  # the check of the split reports the file
    return width, height


def _image_name(task: Mapping[str, Any]) -> str:
    """The file name of a task's image, without folders: uploads have addresses of their own."""
    texts = {key: value for key, value in task["data"].items() if isinstance(value, str)}
    address = str(task.get("file_upload") or texts.get("image") or next(iter(texts.values()), ""))
    parts = urlparse(address)
    name = unquote(parts.path or address)
    if name.rstrip("/").endswith(_STUDIO_FILES):
        name = parse_qs(parts.query).get("d", [name])[-1]
    return PureWindowsPath(PurePosixPath(name).name).name


def _studio_shapes(
    results: Sequence[Mapping[str, Any]], width: int, height: int
) -> Iterator[Shape]:
    """The shapes of an annotation. A shape is one result with its labels (`polygonlabels`), or two
    of one id: the shape (`polygon`) and the same with its `labels`.
    """
    types = [(result.get("id"), str(result.get("type", ""))) for result in results]
    kinds = {key: kind for key, kind in types if kind in _STUDIO_SHAPES}
    for (key, kind), result in zip(types, results, strict=True):
        if kind not in _STUDIO_SHAPES and not kind.endswith("labels"):
            continue  # a choice, a text or a relation
        value = result["value"]
        shape = kinds.get(key, kind) if kind == "labels" else kind
        if labels := value.get(kind):
            segmentation = _studio_segmentation(shape.removesuffix("labels"), value, width, height)
            yield from (Shape(shape, str(label), segmentation) for label in labels)
        elif (key, "labels") not in types:
            yield Shape(kind, "", None)


def _studio_segmentation(shape: str, value: Mapping[str, Any], width: int, height: int) -> object:
    """COCO's segmentation; None for a shape that is not drawn. Positions are in percent."""
    if shape == "polygon":
        return polygon(np.array(value["points"], np.float64) * (width / 100, height / 100))
    if shape == "brush":
        return run_lengths(_brush_mask(value["rle"], width, height), (height, width))
    if shape not in ("rectangle", "ellipse"):
        return None
    x, y = value["x"] * width / 100, value["y"] * height / 100
    if shape == "rectangle":  # x and y are of its upper left corner
        right, bottom = x + value["width"] * width / 100, y + value["height"] * height / 100
        outline = rectangle(x, y, right, bottom)
    else:
        outline = ellipse((x, y), value["radiusX"] * width / 100, value["radiusY"] * height / 100)
    return polygon(outline, value.get("rotation", 0), (x, y))


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
        width, height = int(document["imageWidth"]), int(document["imageHeight"])
        shapes = []
        for shape in document["shapes"]:
            kind = shape.get("shape_type") or "polygon"
            segmentation = _labelme_segmentation(kind, shape, (height, width))
            shapes.append(Shape(kind, str(shape["label"]), segmentation))
        name = PureWindowsPath(str(document["imagePath"])).name
        return AnnotatedImage(name, width, height, shapes)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def _labelme_segmentation(kind: str, shape: Mapping[str, Any], size_hw: tuple[int, int]) -> object:
    """COCO's segmentation; None for a shape that is not drawn."""
    points = np.array(shape["points"], np.float64)
    if kind == "polygon":
        return polygon(points)
    if kind == "rectangle":
        (left, top), (right, bottom) = points
        return polygon(rectangle(left, top, right, bottom))
    if kind == "circle":
        radius = float(np.hypot(*(points[1] - points[0])))
        return polygon(ellipse(points[0], radius, radius))
    if kind == "mask":  # a PNG of the box whose upper left corner is the first point
        inside, _ = decode_png(Path(kind), base64.b64decode(shape["mask"]))
        if inside.ndim != 2:
            raise ValueError("a mask is no grey PNG")
        left, top = (round(number) for number in points[0].tolist())
        return run_lengths(inside > 0, size_hw, left, top)
    return None
