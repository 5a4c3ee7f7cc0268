"""The result of a client: the class of every pixel, with conversions to other formats."""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..runtime.decode.image import decode_image
from ..runtime.encode.overlay import DEFAULT_OPACITY, draw_overlay
from ..runtime.record import BACKGROUND
from ..schema.response import ClassRow

if TYPE_CHECKING:
    import supervision


class _Painted(NamedTuple):
    label: str
    color: tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The segmentation of one image. Notebooks display it as an overlay.

    Attributes:
        label_map: uint8 (H, W), read-only: the class id of every pixel of the upright image.
        classes: the classes present, including background, largest first.
        model, model_version: the model's name and version.
        palette: the colours of all of the model's classes, by class id: three bytes (R, G, B) each.
        image_file: the image file that was sent.
        confidence_map: uint8 (H, W), read-only: each pixel's top probability times 255; None if not
            requested.
        timings_ms: the server's time per stage: decode, preprocess, inference, encode. Empty if
            it sends none.
    """

    label_map: NDArray[np.uint8]
    classes: tuple[ClassRow, ...]
    model: str
    model_version: str
    palette: bytes = field(repr=False)
    image_file: bytes = field(repr=False)
    confidence_map: NDArray[np.uint8] | None = field(default=None, repr=False)
    timings_ms: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for pixels in (self.label_map, self.confidence_map):
            if pixels is not None:
                pixels.flags.writeable = False

    def __repr__(self) -> str:
        height_px, width_px = self.label_map.shape
        rows = ", ".join(f"{row.label} {row.fraction:.1%}" for row in self.classes)
        return (
            f"<Segmentation {width_px} x {height_px} by {self.model} {self.model_version}: {rows}>"
        )

    @cached_property
    def image(self) -> Image.Image:
        """The image: RGB, upright, with the label map's size. It is decoded at the first access.

        Raises:
            SegserveError: the file cannot be decoded on this machine.
        """
        return Image.fromarray(decode_image(self.image_file, max_pixels=self.label_map.size))

    def to_image(self) -> Image.Image:
        """The label map as an indexed image, mode P: pixel value = class id, palette = class
        colours.
        """
        picture = Image.fromarray(self.label_map)
        picture.putpalette(self.palette)
        return picture

    def overlay(self, *, opacity: float = DEFAULT_OPACITY) -> Image.Image:
        """The image with the classes in colour, their outlines and names, RGB. Background pixels
        are unchanged but for the outlines.

        Args:
            opacity: opacity of the colours, from 0 (only the image) to 1.

        Raises:
            ValueError: the opacity is outside 0..1.
            SegserveError: as in `image`.
        """
        labels = {row.id: row.label for row in self.classes}
        colors = np.frombuffer(self.palette, np.uint8).reshape(-1, 3).tolist()
        painted = [
            _Painted(labels.get(class_id, ""), (red, green, blue))
            for class_id, (red, green, blue) in enumerate(colors)
        ]
        image_rgb = np.asarray(self.image)
        return draw_overlay(image_rgb, self.label_map, painted, list(labels), opacity=opacity)

    def mask_of(self, label_or_id: str | int) -> NDArray[np.bool_]:
        """The mask of a class, by its label or id: bool (H, W).

        Raises:
            KeyError: the class is not in the image; the message names the classes that are.
        """
        for row in self.classes:
            if label_or_id in (row.label, row.id):
                mask: NDArray[np.bool_] = self.label_map == row.id
                return mask
        present = ", ".join(f"{row.label!r} ({row.id})" for row in self.classes)
        raise KeyError(f"the image has no {label_or_id!r}; it has: {present}")

    def polygons(self) -> dict[int, list[list[int]]]:
        """The polygons of every class present, by class id: each [x0, y0, x1, y1, ...] in pixels,
        in COCO's order.
        """
        from ..runtime.encode.polygons import encode_polygons

        return encode_polygons(self.label_map, [row.id for row in self.classes])

    def to_coco(
        self,
        *,
        image_id: int | str,
        first_id: int = 1,
        category_ids: Mapping[int, int] | None = None,
    ) -> list[dict[str, Any]]:
        """COCO annotations for `pycocotools.coco.COCO.loadRes`: one per class present, except
        background.

        Args:
            first_id: the id of the first annotation; the next ones follow.
            category_ids: the document's category id of each class id; by default the class id
                itself. Classes that are not in this mapping are omitted.

        Returns:
            Annotations whose `segmentation` is run-length encoded, because RLE is exact and
            supports holes. `area` is in pixels, `bbox` is [x, y, width, height], and `score` is the
            class's mean confidence.
        """
        from ..runtime.encode.mask import encode_rle

        ids = {row.id: row.id for row in self.classes} if category_ids is None else category_ids
        rows = [row for row in self._foreground if row.id in ids]
        masks = encode_rle(self.label_map, [row.id for row in rows])
        annotations = []
        for annotation_id, row in enumerate(rows, start=first_id):
            x_min, y_min, x_max, y_max = row.box_xyxy
            annotation = {
                "id": annotation_id,
                "image_id": image_id,
                "category_id": ids[row.id],
                "segmentation": masks[row.id],
                "area": row.pixels,
                "bbox": [x_min, y_min, x_max - x_min, y_max - y_min],
                "iscrowd": 0,
                "score": row.confidence,
            }
            annotations.append(annotation)
        return annotations

    def to_detections(self) -> "supervision.Detections":
        """Detections for supervision's annotators and metrics, which must be installed: one per
        class present, except background, with the whole mask of the class.
        """
        from supervision import Detections

        rows = self._foreground
        class_ids = np.array([row.id for row in rows], np.int64)
        return Detections(
            xyxy=np.array([row.box_xyxy for row in rows], np.float32).reshape(-1, 4),
            mask=self.label_map == class_ids[:, None, None],
            class_id=class_ids,
            confidence=np.array([row.confidence for row in rows], np.float32),
            data={"class_name": np.array([row.label for row in rows], np.str_)},
        )

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.overlay().save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()

    @property
    def _foreground(self) -> list[ClassRow]:
        return [row for row in self.classes if row.id != BACKGROUND]
